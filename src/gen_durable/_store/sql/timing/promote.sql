-- Brings rows forward whose time has come: what is scheduled, and what waits beyond its deadline. Says how long it is
-- until the next one's.
--
-- Parameters: batch (rows at most).
-- Locks: the rows FOR NO KEY UPDATE SKIP LOCKED, in due order.
-- Index: instances_timers, primary key; see claim.sql for the form of the condition.
-- Guard: SKIP LOCKED under the status filter. A signal or a child's end that commits first has woken the row; one that
--   comes after finds it awake, and is seen by the claim.
-- Answer: how many were promoted; seconds until the next is due, null when there is none.
WITH picked AS MATERIALIZED (
    SELECT i.id
    FROM {schema}.instances i
    WHERE i.status IN (1, 3, 4) AND i.due_at < 'infinity' AND i.due_at <= {clock}
    ORDER BY i.due_at
    LIMIT %(batch)s::int
    FOR NO KEY UPDATE SKIP LOCKED
),
due AS (
    UPDATE {schema}.instances i SET status = 0, updated_at = {clock}
    FROM picked p
    WHERE i.id = ANY (ARRAY[p.id])
    RETURNING i.lane
),
told AS (
    SELECT pg_notify('{channel}', 'q:' || q.queue)
    FROM (SELECT DISTINCT l.queue FROM due d JOIN {schema}.lanes l ON l.id = d.lane) q
)
SELECT (SELECT count(*) FROM due), (SELECT count(*) FROM told),
    extract(epoch FROM (
        SELECT i.due_at FROM {schema}.instances i
        WHERE i.status IN (1, 3, 4) AND i.due_at < 'infinity' AND i.due_at > {clock}
        ORDER BY i.due_at LIMIT 1
    ) - {clock})::float8
