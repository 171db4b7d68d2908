-- Commits a group of outcomes that end instances, when that is all there is to it: no join to count, no history but the
-- terminal row. Where that frees slots of concurrency keys, it hands them on to the next rows of their lines.
--
-- Parameters: worker; outcomes, a JSON list sorted by id (fields below); pools, a JSON list of {lane, pool, room}: the
--   places that the worker keeps for rows of these lanes (null: none); most and report, as in limiting/admit.sql.
-- Locks: the rows to end, in id order, as a guarded delete, for which it waits for a cancel or a signal in progress; then
--   the rows that get their slots, FOR NO KEY UPDATE SKIP LOCKED. For lines without such a row, what admit.sql locks.
-- Index: the primary key; instances_line; lanes', limits' and workers' primary keys.
-- Guard: ended under the fencing token of the claim, or not at all: then its slot is not handed on either. A slot that is
--   handed on has one holder before this transaction and one after it: whoever counts them under the line's lock sees the
--   same number either way. Where a limit was lowered once, only such a count may say what follows. So it may where no
--   row is seen that can follow at once, since one may have come meanwhile: "admit" takes the line's lock and looks then.
--   (It is volatile, and called when all else is done: it sees that, and what has committed since this began.)
-- Answer: rows by their first column, as limiting/admit.sql gives them, and 'done' (as its name the JSON list of the ended
--   rows' ids and revs, as they were claimed; how many notifications went out, and how many keys stay taken).
WITH o AS MATERIALIZED (
    SELECT g.id, g.rev, 2 AS op, g.state, g.result, g.keep, g.error, coalesce(g.kind, 3::smallint) AS kind, g.ran,
        coalesce(g.tried, 0) AS tried, g.took, coalesce(g.history, 1::smallint) AS history
    FROM json_to_recordset(%(outcomes)s::json) AS g (
        id bigint, rev bigint, state jsonb, result jsonb, keep double precision, error jsonb, kind smallint, ran text,
        tried int, took real, history smallint
    )
),
{part ended}
freed AS MATERIALIZED (
    SELECT e.gate AS line, count(*) AS slots FROM ended e WHERE e.gate IS NOT NULL GROUP BY e.gate
),
place AS MATERIALIZED (
    SELECT w.lane, w.pool, w.room
    FROM jsonb_to_recordset(%(pools)s::jsonb) AS w (lane int, pool int, room int)
    JOIN {schema}.lanes l ON l.id = w.lane AND NOT l.paused AND l.queue <> ALL ({part capped})
    WHERE NOT %(report)s::boolean AND EXISTS (SELECT FROM {schema}.workers k WHERE k.id = %(worker)s::int)
),
picked AS MATERIALIZED (
    SELECT f.line, n.id, n.lane, n.priority, n.due_at, n.rate, n.crashes
    FROM freed f
    CROSS JOIN LATERAL (
        SELECT i.id, i.lane, i.priority, i.due_at, i.rate, i.crashes
        FROM {schema}.instances i
        WHERE i.line = f.line AND i.status = 5
        ORDER BY i.priority, i.due_at, i.id
        LIMIT f.slots
        FOR NO KEY UPDATE SKIP LOCKED
    ) n
    WHERE NOT EXISTS (
        SELECT FROM {schema}.limits c
        WHERE c.kind = 'concurrency' AND c.name = ANY (ARRAY[{schema}.limit_of(f.line)]) AND c.lowered
    )
),
next AS MATERIALIZED (
    SELECT q.line, q.id, q.pool
    FROM (
        SELECT p.line, p.id, l.pool, l.room,
            row_number() OVER (PARTITION BY l.pool ORDER BY p.priority, p.due_at, p.id) AS place
        FROM picked p
        JOIN place l ON l.lane = p.lane
        WHERE p.rate IS NULL AND p.crashes = 0
    ) q
    WHERE q.place <= q.room
),
handed AS (
    UPDATE {schema}.instances i
    SET status = 2, worker = %(worker)s::int, rev = i.rev + 1, updated_at = {clock}
    FROM next n
    WHERE i.id >= n.id AND i.id <= n.id
    RETURNING i.id, i.rev, i.lane, i.step, i.state, i.attempt, i.crashes, i.priority, i.key, i.due_at, i.inserted_at,
        i.parent_id, i.inbox, i.awaits, i.spawn, i.children_left, i.children_spare, i.cancel_rest, i.gate, i.own_gate, i.rate
),
left_over AS (
    -- Both lists meet by grouping: a join of them is a loop in a loop.
    SELECT u.line
    FROM (
        SELECT f.line, f.slots FROM freed f
        UNION ALL
        SELECT n.line, -1 FROM next n
    ) u
    GROUP BY u.line
    HAVING sum(u.slots) > 0
),
spare AS (
    SELECT jsonb_agg(jsonb_build_object(
        'lane', l.lane, 'pool', l.pool, 'room', l.room - (SELECT count(*) FROM next n WHERE n.pool = l.pool)
    )) AS pools
    FROM place l
),
looked AS MATERIALIZED (
    SELECT a.*
    FROM (SELECT array_agg(r.line) AS lines FROM left_over r CROSS JOIN (SELECT count(*) FROM handed) AS before) l
    CROSS JOIN LATERAL {schema}.admit(
        {clock}, l.lines, %(most)s::int, %(worker)s::int,
        CASE WHEN %(report)s::boolean THEN %(pools)s::jsonb ELSE (SELECT s.pools FROM spare s) END, %(report)s::boolean
    ) a
    WHERE l.lines IS NOT NULL
),
told AS MATERIALIZED (
    SELECT pg_notify('{channel}', m.message)
    FROM (
        SELECT 'e:' || e.id AS message FROM ended e WHERE e.watched
        UNION ALL
        SELECT 'q:' || l.name FROM looked l WHERE l.what = 'queue'
    ) m
)
SELECT 'claim' AS what, NULL::text AS name, NULL::bigint AS admitted, NULL::bigint AS holding, NULL::float8 AS room,
    NULL::float8 AS seconds, h.id, h.rev, h.lane, h.step, h.state, h.attempt, h.crashes, h.priority, h.key, h.due_at,
    h.inserted_at, h.parent_id,
    CASE
        WHEN h.inbox IS NOT NULL OR h.awaits IS NOT NULL OR h.spawn IS NOT NULL
        THEN jsonb_build_object(
            'awaits', h.awaits, 'spawn', h.spawn, 'left', h.children_left, 'spare', h.children_spare,
            'rest', h.cancel_rest, 'signals', CASE WHEN h.inbox IS NOT NULL THEN {schema}.read_inbox(h.id) END
        )
    END AS waits,
    h.gate, h.own_gate, h.rate
FROM handed h
UNION ALL
SELECT l.* FROM looked l
UNION ALL
SELECT 'done', (SELECT json_agg(json_build_array(e.id, e.rev - 1))::text FROM ended e),
    (SELECT count(*) FROM told), (SELECT count(*) FROM reserved),
    NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
