-- Brings rows forward whose time has come: what is scheduled, and what waits beyond its deadline. Says how long it is
-- until the next one's.
--
-- Parameters: batch (rows at most).
-- Locks: the rows FOR NO KEY UPDATE SKIP LOCKED, in due order.
-- Index: instances_timers, primary key; see claim.sql for the form of the condition.
-- Guard: SKIP LOCKED under the status filter. A signal or a child's end that commits first has woken the row; one that
--   comes after finds it awake, and is seen by the claim.
-- Answer: how many were promoted; notifications; seconds until the next is due, null when there is none; seconds until
--   limits need a look (admit.sql), null when none does; whether somebody had locked rows that are due, null when there
--   were enough others.
WITH picked AS MATERIALIZED (
    SELECT i.id
    FROM {schema}.instances i
    WHERE i.status IN (1, 3, 4) AND i.due_at < 'infinity' AND i.due_at <= {clock}
    ORDER BY i.due_at
    LIMIT %(batch)s::int
    FOR NO KEY UPDATE SKIP LOCKED
),
due AS (
    UPDATE {schema}.instances i SET status = {schema}.ready(i.line), updated_at = {clock}
    FROM picked p
    WHERE i.id = ANY (ARRAY[p.id])
    RETURNING i.lane, i.status, i.line
),
knocked AS (
    INSERT INTO {schema}.knocks (line) SELECT DISTINCT d.line FROM due d WHERE d.status = 5
    RETURNING line
),
told AS (
    SELECT pg_notify('{channel}', m.message)
    FROM (
        SELECT 'q:' || l.queue AS message FROM due d JOIN {schema}.lanes l ON l.id = d.lane WHERE d.status = 0
        UNION
        SELECT 'k:' FROM knocked
    ) m
)
SELECT (SELECT count(*) FROM due), (SELECT count(*) FROM told),
    extract(epoch FROM (
        SELECT i.due_at FROM {schema}.instances i
        WHERE i.status IN (1, 3, 4) AND i.due_at < 'infinity' AND i.due_at > {clock}
        ORDER BY i.due_at LIMIT 1
    ) - {clock})::float8,
    CASE WHEN EXISTS (SELECT 1 FROM knocked) OR EXISTS (SELECT 1 FROM {schema}.knocks) THEN 0 ELSE (
        SELECT greatest(extract(epoch FROM w.wake_at - {clock}), 0)::float8
        FROM {schema}.lines w WHERE w.wake_at IS NOT NULL ORDER BY w.wake_at LIMIT 1
    ) END,
    CASE WHEN (SELECT count(*) FROM picked) < %(batch)s::int THEN (SELECT count(*) FROM picked) < (
        SELECT count(*)
        FROM (
            SELECT FROM {schema}.instances i
            WHERE i.status IN (1, 3, 4) AND i.due_at < 'infinity' AND i.due_at <= {clock}
            ORDER BY i.due_at
            LIMIT %(batch)s::int
        ) d
    ) END
