-- The queues that somebody has used, and whether they are paused.
--
-- Locks: none.
-- Index: the primary key.
SELECT q.name, q.paused FROM {schema}.queues q ORDER BY q.name
