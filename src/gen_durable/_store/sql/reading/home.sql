-- Which database a connection leads to, and whether the schema is there: asked of connections that callers lend. It fails
-- nowhere, so it breaks nobody's transaction.
--
-- Locks: none.
-- Answer: database; its number, and when its server was started (microseconds), by which two connections to one are told
--   from two databases of one name; whether the schema is there.
SELECT d.datname::text, d.oid::bigint, (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint,
    pg_catalog.to_regclass('{schema}.migrations') IS NOT NULL
FROM pg_catalog.pg_database d
WHERE d.datname = pg_catalog.current_database()
