-- Makes queues known, so that whoever names one is told apart from whoever mistypes one.
--
-- Parameters: queues (text[]), sorted.
-- Locks: the new rows, in the order of the list.
-- Index: queues' primary key.
INSERT INTO {schema}.queues (name)
SELECT q FROM unnest(%(queues)s::text[]) AS q
ON CONFLICT (name) DO NOTHING
