-- Inserts instances; a row whose key is taken is left out. Rows that are due now can be born claimed.
--
-- Parameters: rows, a JSON list (fields below), sorted by key where a transaction needs more than one statement; notify,
--   whether to wake idle workers; soon, the seconds within which something must be due for timers to be woken; worker,
--   the id of the worker that keeps places for all of these rows (null: none does).
-- Locks: the new rows, in key order, so that two calls with the same keys in opposite orders can't deadlock; it waits for
--   another transaction that is just inserting the same key. A row with a limit is blocked, and knocks at its line: a new
--   row of knocks, which nobody waits for.
-- Index: instances_key decides about duplicates; workers' and limits' primary keys.
-- Guard: the unique index. A reservation of the key (status 9) is in it too; a row of scope 0 collides with nothing. A row
--   is born claimed only where a claim would get it: its lane is not paused and the worker is in the workers table. Its
--   rev is 0, as no claim's is, and that is its fencing token.
-- Answer: (place in the list from 1, id or null for a duplicate, how many notifications went out, when it was inserted
--   and due if it was born claimed, else null); a row with an unknown lane is missing from it.
-- Plan: what was given and what came of it meet by grouping: a worker's session has no hash join, and a nested loop over
--   both lists is quadratic.
WITH given AS MATERIALIZED (
    SELECT coalesce(g.own_id, nextval('{schema}.instances_id_seq')) AS id, g.*,
        coalesce(g.at, {clock} + make_interval(secs => coalesce(g.delay, 0))) AS due_at,
        coalesce(g.gate, g.rate) AS line,
        CASE WHEN g.at IS NULL AND coalesce(g.delay, 0) = 0 AND coalesce(g.gate, g.rate) IS NULL AND NOT l.paused
            AND l.queue <> ALL ({part capped}) THEN (
            SELECT k.id FROM {schema}.workers k WHERE k.id = %(worker)s::int
        ) END AS worker
    FROM ROWS FROM (
        json_to_recordset(%(rows)s::json) AS (
            lane int, step text, state jsonb, key text, priority smallint, delay double precision, at timestamptz,
            scope smallint, own_id bigint, parent_id bigint, parent_spawn int, gate text, own_gate text, rate text,
            weight int
        )
    ) WITH ORDINALITY AS g (
        lane, step, state, key, priority, delay, at, scope, own_id, parent_id, parent_spawn, gate, own_gate, rate,
        weight, place
    )
    JOIN {schema}.lanes l ON l.id = g.lane
    ORDER BY g.place  -- ids are drawn in the order of the list, however the lanes are looked up
),
fresh AS (
    INSERT INTO {schema}.instances (
        id, due_at, inserted_at, updated_at, lane, worker, status, priority, step, key, scope, parent_id, parent_spawn,
        state, gate, own_gate, rate, weight, line
    )
    SELECT g.id, g.due_at, {clock}, {clock}, g.lane, g.worker,
        CASE WHEN g.due_at > {clock} THEN 1 WHEN g.worker IS NULL THEN {schema}.ready(g.line) ELSE 2 END,
        coalesce(g.priority, 0), g.step, g.key, g.scope, g.parent_id, g.parent_spawn, g.state,
        g.gate, g.own_gate, g.rate, g.weight, g.line
    FROM given g
    ORDER BY g.key COLLATE "C", g.id
    ON CONFLICT (key, (CASE WHEN scope = 0 THEN id ELSE 0 END)) WHERE key IS NOT NULL DO NOTHING
    RETURNING id, lane, status, due_at, line
),
knocked AS (
    INSERT INTO {schema}.knocks (line) SELECT DISTINCT f.line FROM fresh f WHERE f.status = 5
),
told AS (
    SELECT pg_notify('{channel}', t.message)
    FROM (
        SELECT DISTINCT 'q:' || l.queue AS message
        FROM fresh f JOIN {schema}.lanes l ON l.id = f.lane
        WHERE f.status = 0
        UNION ALL
        SELECT 'k:' WHERE EXISTS (SELECT 1 FROM fresh f WHERE f.status = 5)
        UNION ALL
        SELECT 't:' WHERE EXISTS (
            SELECT 1 FROM fresh f WHERE f.status = 1 AND f.due_at < {clock} + make_interval(secs => %(soon)s::float8)
        )
    ) t
    WHERE %(notify)s::boolean
)
SELECT max(u.place), CASE WHEN count(*) > 1 THEN u.id END, (SELECT count(*) FROM told) AS told, max(u.born_at) AS born_at
FROM (
    SELECT g.id, g.place, NULL::timestamptz AS born_at FROM given g
    UNION ALL
    SELECT f.id, NULL, CASE WHEN f.status = 2 THEN f.due_at END FROM fresh f
) u
GROUP BY u.id
