-- The schema's version, and whether it was made with a test clock.
--
-- Locks: none.
-- Index: the primary key.
SELECT max(m.version), to_regprocedure('{schema}.clock()') IS NOT NULL FROM {schema}.migrations m
