-- Drops expired partitions and makes those of the next days.
--
-- Locks: see the functions; nothing waits for more than a fraction of a second.
SELECT {schema}.drop_expired_partitions(), {schema}.ensure_partitions()
