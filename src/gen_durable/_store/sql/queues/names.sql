-- The queues that somebody has used.
--
-- Locks: none.
-- Index: the primary key.
SELECT q.name FROM {schema}.queues q ORDER BY q.name
