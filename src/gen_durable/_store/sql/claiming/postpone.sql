-- Puts claimed rows off that were not started, each for a random part of some seconds: no attempt is spent.
--
-- Parameters: worker; claims, a JSON list of {id, rev}; seconds (at most).
-- Locks: the rows, in the order of the list (sorted by id); it waits only for a signal or cancel in progress.
-- Index: primary key.
-- Guard: the claim's rev and worker; a claim that is no longer held changes nothing.
-- Answer: how many, how many notifications, and seconds until the first is due; it tells the timers.
WITH off AS MATERIALIZED (
    UPDATE {schema}.instances i
    SET status = 1, worker = NULL, rev = i.rev + 1, updated_at = {clock},
        due_at = {clock} + make_interval(secs => (0.1 + 0.9 * random()) * %(seconds)s::float8)
    FROM jsonb_to_recordset(%(claims)s::jsonb) AS g (id bigint, rev bigint)
    WHERE i.id = ANY (ARRAY[g.id]) AND i.rev = g.rev AND i.status = 2 AND i.worker = %(worker)s::int
    RETURNING i.due_at, i.gate
),
knocked AS (
    INSERT INTO {schema}.knocks (line) SELECT DISTINCT o.gate FROM off o WHERE o.gate IS NOT NULL
),
told AS MATERIALIZED (
    SELECT pg_notify('{channel}', t.message) FROM (SELECT 't:' AS message FROM off LIMIT 1) t
)
SELECT (SELECT count(*) FROM off), (SELECT count(*) FROM told),
    (SELECT extract(epoch FROM min(o.due_at) - {clock})::float8 FROM off o)
