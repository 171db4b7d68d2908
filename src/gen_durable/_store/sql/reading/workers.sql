-- The registered workers.
--
-- Locks: none.
-- Index: none needed; one row per worker.
SELECT w.id, w.name, w.host, w.pid, w.queues, w.started_at, w.seen_at,
    extract(epoch FROM {wall} - w.seen_at)::float8
FROM {schema}.workers w
ORDER BY w.started_at, w.id
