-- The tables that a worker could not work on: it must own them, because it makes and drops their partitions.
--
-- Locks: none.
SELECT c.relname
FROM pg_catalog.pg_class c
WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind IN ('r', 'p') AND NOT pg_has_role(c.relowner, 'USAGE')
ORDER BY c.relname
LIMIT 5
