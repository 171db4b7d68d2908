-- Brings a failed or cancelled instance back, to run again from the step at which it ended, with what that had been
-- handed. One that waited for a signal when it was cancelled waits for it again.
--
-- Parameters: id.
-- Locks: its parent's row, the terminal row, then the new row; it waits for another that is just taking its key.
-- Index: finished_id, the primary key, instances_key.
-- Guard: the terminal row's deletion: of two retries one finds it. Its reservation of the key, if any, becomes the row. A
--   join that still waits for its spawn counts it as live again.
-- Answer: (id, lane, notifications), or no row: there is no failed or cancelled instance of this id. A key that another
--   instance has taken meanwhile is a unique violation.
WITH child AS MATERIALIZED (
    SELECT f.parent_id FROM {schema}.finished f WHERE f.id = %(id)s::bigint
),
kin AS MATERIALIZED (
    SELECT p.id
    FROM child c
    JOIN {schema}.instances p ON p.id >= c.parent_id AND p.id <= c.parent_id
    WHERE p.status = 4
    FOR NO KEY UPDATE OF p
),
gone AS (
    DELETE FROM {schema}.finished f
    USING (SELECT count(*) FROM kin) AS before
    WHERE f.id = %(id)s::bigint AND f.status IN (7, 8)
    RETURNING f.*
),
back AS (
    INSERT INTO {schema}.instances AS i (
        id, rev, due_at, inserted_at, updated_at, lane, status, priority, step, key, state, error, scope, parent_id,
        parent_spawn, spawn, awaits, children_left, children_spare, cancel_rest, inbox, gate, own_gate, rate, weight,
        line
    )
    SELECT g.id, g.rev + 1, coalesce(g.parked_until, {clock}), g.inserted_at, {clock}, g.lane,
        CASE WHEN g.parked_until IS NULL THEN {schema}.ready(coalesce(g.gate, g.rate)) ELSE 3 END, g.priority, g.step,
        g.key, g.state, g.error,
        g.scope, g.parent_id, g.parent_spawn, g.spawn, g.awaits, g.children_left,
        g.children_spare, g.cancel_rest, jsonb_array_length(g.inbox), g.gate, g.own_gate, g.rate, g.weight,
        coalesce(g.gate, g.rate)
    FROM gone g
    ON CONFLICT (id) DO UPDATE
    SET rev = EXCLUDED.rev, due_at = EXCLUDED.due_at, status = EXCLUDED.status, priority = EXCLUDED.priority,
        state = EXCLUDED.state, error = EXCLUDED.error, updated_at = EXCLUDED.updated_at,
        parent_id = EXCLUDED.parent_id, parent_spawn = EXCLUDED.parent_spawn, spawn = EXCLUDED.spawn,
        awaits = EXCLUDED.awaits, children_left = EXCLUDED.children_left,
        children_spare = EXCLUDED.children_spare, cancel_rest = EXCLUDED.cancel_rest, inbox = EXCLUDED.inbox,
        gate = EXCLUDED.gate, own_gate = EXCLUDED.own_gate, rate = EXCLUDED.rate, weight = EXCLUDED.weight, line = EXCLUDED.line
    WHERE i.status = 9
    RETURNING i.id, i.lane, i.status, i.line
),
knocked AS (
    INSERT INTO {schema}.knocks (line) SELECT b.line FROM back b WHERE b.status = 5
),
letters AS (
    INSERT INTO {schema}.signals (instance_id, id, status, sent_at, name, payload, dedup_key)
    OVERRIDING SYSTEM VALUE
    SELECT s.instance_id, s.id, s.status, s.sent_at, s.name, s.payload, s.dedup_key
    FROM gone g
    CROSS JOIN LATERAL jsonb_to_recordset(g.inbox) AS s (
        instance_id bigint, id bigint, status smallint, sent_at timestamptz, name text, payload jsonb, dedup_key text
    )
),
noted AS (
    INSERT INTO {schema}.transitions (instance_id, seq, at, worker, attempt, outcome, took, step, error)
    SELECT g.id, g.rev, g.finished_at, g.worker, g.attempt, g.status - 3, g.took, g.step, g.error
    FROM gone g WHERE g.took IS NOT NULL
),
uncounted AS (
    UPDATE {schema}.instances p
    SET children_left = p.children_left + CASE WHEN p.children_spare IS NULL THEN 1 ELSE 0 END,
        children_spare = p.children_spare + 1
    FROM gone g
    WHERE p.id = ANY (ARRAY[g.parent_id]) AND p.status = 4 AND p.spawn = ANY (ARRAY[g.parent_spawn])
),
told AS (
    SELECT pg_notify('{channel}', CASE b.status WHEN 0 THEN 'q:' || l.queue WHEN 5 THEN 'k:' ELSE 't:' END)
    FROM back b JOIN {schema}.lanes l ON l.id = b.lane
)
SELECT b.id, b.lane, (SELECT count(*) FROM told) FROM back b
