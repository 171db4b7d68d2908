-- Makes the partitions of the next days; before a worker's first claim and after each migration.
--
-- Locks: see the function.
SELECT {schema}.ensure_partitions()
