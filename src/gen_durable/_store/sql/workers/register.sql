-- Makes a worker known, with the session lock whose loss will show its death.
--
-- Parameters: worker (a random id: never reused by intent); name; host; pid; queues (JSON); lanes (int[]); lock, whether
--   this session stays the worker's own (not behind a transaction pooler).
-- Locks: the advisory lock of the worker, for the session.
-- Index: the primary key.
-- Guard: the primary key; no row in the answer means that the id is taken: try another.
INSERT INTO {schema}.workers (id, name, host, pid, queues, lanes, locked, started_at, seen_at)
SELECT %(worker)s::int, %(name)s::text, %(host)s::text, %(pid)s::int, %(queues)s::jsonb, %(lanes)s::int[],
    CASE WHEN %(lock)s::boolean THEN pg_try_advisory_lock({lockspace}, %(worker)s::int) ELSE false END, {wall}, {wall}
ON CONFLICT (id) DO NOTHING
RETURNING locked
