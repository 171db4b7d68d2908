-- Claims due rows for a worker: as many as it has room for, in the order priority, due time, id in each queue.
--
-- Parameters: worker (its id); wants, a JSON list of {lane, pool, room, solo}: the lanes that the worker knows, the
--   queue ("pool", a number of the worker's own) that each belongs to, how many rows that queue has room for, whether
--   the lane is the only one of its pool (then its rows need no merging), and counted, when the room is what the queue's cap
--   leaves, counted in this transaction (rooms.sql).
-- Locks: the picked rows FOR NO KEY UPDATE SKIP LOCKED, in index order; it never waits for a row.
-- Answer: the rows; the last column but three is null but for a row with an inbox, an await or a spawn: {awaits, spawn,
--   left, spare, rest, signals}. A signal that woke the row is in it: the inbox is read under the row's lock, by a
--   function that sees what has committed since this statement began. (Since then others may have run the row, parked it
--   and woken it.)
-- Index: instances_ready, once per lane; rows that are not due, parked, blocked, executing or terminal are not in it;
--   workers' primary key; signals' primary key.
-- Guard: SKIP LOCKED under the status filter: of two workers that race for a row one gets it, the other passes by. The
--   new rev is the claim's fencing token. A worker that is not in the workers table gets nothing: one that was declared
--   dead and has not heard of it would lose each row to the reaper again, at the price of a crash.
-- Plan: "id >= x AND id <= x", and elsewhere "= ANY (ARRAY[x])", is "id = x" in a form that can only be looked up. An
--   equality may be joined the other way round too, by a walk over all rows: plans made while the table was empty did so.
WITH want AS MATERIALIZED (
    SELECT w.lane, w.pool, w.room, w.solo
    FROM jsonb_to_recordset(%(wants)s::jsonb) AS w (lane int, pool int, room int, solo boolean, counted boolean)
    JOIN {schema}.lanes l ON l.id = w.lane AND NOT l.paused AND (w.counted OR l.queue <> ALL ({part capped}))
    WHERE EXISTS (SELECT 1 FROM {schema}.workers k WHERE k.id = %(worker)s::int)
),
peek AS (
    -- Where a queue has several lanes: look, without locks, how its next rows spread over them.
    SELECT w.lane, w.room, row_number() OVER (PARTITION BY w.pool ORDER BY r.priority, r.due_at, r.id) AS place
    FROM want w
    CROSS JOIN LATERAL (
        SELECT i.priority, i.due_at, i.id
        FROM {schema}.instances i
        WHERE i.lane = w.lane AND i.status = 0
        ORDER BY i.priority, i.due_at, i.id
        LIMIT w.room
    ) r
    WHERE NOT w.solo
),
share AS MATERIALIZED (
    SELECT w.lane, w.room::bigint AS room FROM want w WHERE w.solo
    UNION ALL
    SELECT p.lane, count(*) FROM peek p WHERE p.place <= p.room GROUP BY p.lane
),
picked AS MATERIALIZED (
    SELECT r.id
    FROM share s
    CROSS JOIN LATERAL (
        SELECT i.id
        FROM {schema}.instances i
        WHERE i.lane = s.lane AND i.status = 0
        ORDER BY i.priority, i.due_at, i.id
        LIMIT s.room
        FOR NO KEY UPDATE SKIP LOCKED
    ) r
)
UPDATE {schema}.instances i
SET status = 2, worker = %(worker)s::int, rev = i.rev + 1, updated_at = {clock}
FROM picked p
WHERE i.id >= p.id AND i.id <= p.id
RETURNING i.id, i.rev, i.lane, i.step, i.state, i.attempt, i.crashes, i.priority, i.key, i.due_at, i.inserted_at,
    i.parent_id,
    CASE
        WHEN i.inbox IS NOT NULL OR i.awaits IS NOT NULL OR i.spawn IS NOT NULL
        THEN jsonb_build_object(
            'awaits', i.awaits, 'spawn', i.spawn, 'left', i.children_left, 'spare', i.children_spare,
            'rest', i.cancel_rest,
            'signals', CASE WHEN i.inbox IS NOT NULL THEN {schema}.read_inbox(i.id) END
        )
    END,
    i.gate, i.own_gate, i.rate
