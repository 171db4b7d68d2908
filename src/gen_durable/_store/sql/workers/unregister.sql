-- A worker that has drained goes; claims that it still had (there should be none) go back as a dead worker's would.
--
-- Parameters: worker.
-- Locks: its own row.
-- Index: the primary key.
DELETE FROM {schema}.workers WHERE id = %(worker)s::int RETURNING id
