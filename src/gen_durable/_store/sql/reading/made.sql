-- When the schema was made: the same database, reached through two servers, has one answer.
--
-- Locks: none.
-- Index: none needed; one row for each migration.
SELECT (extract(epoch FROM min(m.applied_at)) * 1000000)::bigint FROM {schema}.migrations m
