-- The lanes of some queues.
--
-- Parameters: queues (text[]).
-- Locks: none.
SELECT l.queue, l.machine, l.version, l.id FROM {schema}.lanes l WHERE l.queue = ANY (%(queues)s::text[]) ORDER BY l.id
