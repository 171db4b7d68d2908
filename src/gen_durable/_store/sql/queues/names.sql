-- The queues that somebody has used.
--
-- Locks: none.
SELECT q.name FROM {schema}.queues q ORDER BY q.name
