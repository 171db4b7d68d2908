-- Inserts instances; a row whose key is taken is left out.
--
-- Parameters: rows, a JSON list (fields below), sorted by key where a transaction needs more than one statement; notify,
--   whether to wake idle workers; soon, the seconds within which something must be due for timers to be woken.
-- Locks: the new rows, in key order, so that two calls with the same keys in opposite orders can't deadlock; it waits for
--   another transaction that is just inserting the same key.
-- Index: instances_key decides about duplicates.
-- Guard: the unique index. A reservation of the key (status 9) is in it too; a row of scope 0 collides with nothing.
-- Answer: (place in the list from 1, id or null for a duplicate); a row with an unknown lane is missing from it.
-- Plan: what was given and what came of it meet by grouping: a worker's session has no hash join, and a nested loop over
--   both lists is quadratic.
WITH given AS MATERIALIZED (
    SELECT coalesce(g.own_id, nextval('{schema}.instances_id_seq')) AS id, g.*,
        coalesce(g.at, {clock} + make_interval(secs => coalesce(g.delay, 0))) AS due_at
    FROM ROWS FROM (
        json_to_recordset(%(rows)s::json) AS (
            lane int, step text, state jsonb, key text, priority smallint, delay double precision, at timestamptz,
            scope smallint, own_id bigint, parent_id bigint, parent_spawn int
        )
    ) WITH ORDINALITY AS g (
        lane, step, state, key, priority, delay, at, scope, own_id, parent_id, parent_spawn, place
    )
    JOIN {schema}.lanes l ON l.id = g.lane
    ORDER BY g.place  -- ids are drawn in the order of the list, however the lanes are looked up
),
fresh AS (
    INSERT INTO {schema}.instances (
        id, due_at, inserted_at, updated_at, lane, status, priority, step, key, scope, parent_id, parent_spawn, state
    )
    SELECT g.id, g.due_at, {clock}, {clock}, g.lane, CASE WHEN g.due_at > {clock} THEN 1 ELSE 0 END,
        coalesce(g.priority, 0), g.step, g.key, g.scope, g.parent_id, g.parent_spawn, g.state
    FROM given g
    ORDER BY g.key COLLATE "C", g.id
    ON CONFLICT (key, (CASE WHEN scope = 0 THEN id ELSE 0 END)) WHERE key IS NOT NULL DO NOTHING
    RETURNING id, lane, status, due_at
),
told AS (
    SELECT pg_notify('{channel}', t.message)
    FROM (
        SELECT DISTINCT 'q:' || l.queue AS message
        FROM fresh f JOIN {schema}.lanes l ON l.id = f.lane
        WHERE f.status = 0
        UNION ALL
        SELECT 't:' WHERE EXISTS (
            SELECT 1 FROM fresh f WHERE f.status = 1 AND f.due_at < {clock} + make_interval(secs => %(soon)s::float8)
        )
    ) t
    WHERE %(notify)s::boolean
)
SELECT max(u.place), CASE WHEN count(*) > 1 THEN u.id END, (SELECT count(*) FROM told) AS told
FROM (SELECT g.id, g.place FROM given g UNION ALL SELECT f.id, NULL FROM fresh f) u
GROUP BY u.id
