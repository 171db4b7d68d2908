-- Inserts instances of one lane that are due now and differ in nothing but their states: no key, no limit.
-- What "insert" does for every kind, at half of its cost; it must come to the same.
--
-- Parameters: states, a JSON list; lane; step; priority; parent_id and parent_spawn, of a spawn's children (else null);
--   notify, whether to wake idle workers; worker, the id of the worker that keeps places for all of these rows (null:
--   none does).
-- Locks: the new rows, of which nobody else knows.
-- Index: the primary keys of lanes, workers and limits.
-- Guard: none is needed, for without a key nothing collides. Rows are born claimed only where a claim would get them: see
--   "insert".
-- Answer: (id, how many notifications went out, when it was inserted and due if it was born claimed, else null), in the
--   order of the list; nothing where the lane is unknown.
-- Plan: the one row of "place" is joined without a condition, so that no plan but a loop through the list in its order is
--   possible.
WITH place AS MATERIALIZED (
    SELECT l.id AS lane, l.queue, CASE
        WHEN %(worker)s::int IS NULL THEN NULL  -- and the caps are not looked at
        WHEN NOT l.paused AND l.queue <> ALL ({part capped}) THEN (
            SELECT k.id FROM {schema}.workers k WHERE k.id = %(worker)s::int
        )
    END AS worker
    FROM {schema}.lanes l
    WHERE l.id = %(lane)s::int
),
fresh AS (
    INSERT INTO {schema}.instances (
        due_at, inserted_at, updated_at, lane, worker, status, priority, step, parent_id, parent_spawn, state
    )
    SELECT {clock}, {clock}, {clock}, p.lane, p.worker, CASE WHEN p.worker IS NULL THEN 0 ELSE 2 END,
        %(priority)s::smallint, %(step)s::text, %(parent_id)s::bigint, %(parent_spawn)s::int, s.state
    FROM place p, jsonb_array_elements(%(states)s::jsonb) AS s (state)
    RETURNING id, CASE WHEN status = 2 THEN due_at END AS born_at
),
told AS (
    SELECT pg_notify('{channel}', 'q:' || p.queue) FROM place p WHERE p.worker IS NULL AND %(notify)s::boolean
)
SELECT f.id, (SELECT count(*) FROM told), f.born_at FROM fresh f
