-- Whether a connection that was handed in leads to the engine's database and schema, and may write there.
--
-- Parameters: worker, the number of a worker that has just registered: another database does not know it.
-- Locks: none.
-- Index: workers' primary key.
SELECT count(*), current_setting('transaction_read_only')
FROM {schema}.workers w
WHERE w.id = %(worker)s::int
