-- The schema's version.
--
-- Locks: none.
SELECT max(m.version) FROM {schema}.migrations m
