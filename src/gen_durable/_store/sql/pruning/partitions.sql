-- Makes the partitions of the next days and drops expired ones.
--
-- Locks: see the functions. In this order, because a drop keeps its parent's lock until the end; nothing waits for more than
--   a fraction of a second.
-- Answer: the names of those that were dropped; how many were made.
WITH made AS MATERIALIZED (
    SELECT {schema}.ensure_partitions() AS partitions
)
SELECT {schema}.drop_expired_partitions(), m.partitions FROM made m
