-- The schema's version.
--
-- Locks: none.
-- Index: the primary key.
SELECT max(m.version) FROM {schema}.migrations m
