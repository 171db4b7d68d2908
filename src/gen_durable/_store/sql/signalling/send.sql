-- Puts a signal into a live instance's inbox, and wakes the instance when it waits for that name: as a worker's claim
-- where that keeps a place for it.
--
-- Parameters: id or key (the other null); name; payload (JSON); dedup (null: none); notify, whether to wake idle workers;
--   worker, the id of a worker that keeps a place for a row of each of these lanes (null: none does); lanes.
-- Locks: the instance's row, whatever its status, then the new inbox row. It waits for a commit in progress: a row that is
--   just about to wait is found waiting, one that ends is gone.
-- Index: the primary key, or instances_key (of several live ones with the key the newest is meant); signals_dedup.
-- Guard: the row's lock, taken before anything is looked at: what "found" says of the row is so until the statement's
--   end. It is claimed only where a claim would get it: the lane is not paused, the worker is in the workers table; and
--   not after a crash, for which the claimer has rules of its own.
-- Answer: (id, queue, whether the signal is new, whether it woke the row, notifications, whether it knocked at the row's
--   line, because it has a limit), and where the row was claimed
--   what claim.sql answers, else nulls; no row: there is no such live instance, and nothing was stored.
WITH target AS MATERIALIZED (
    SELECT i.id, i.lane, i.crashes, i.line, i.status = 3 AND %(name)s::text = ANY (i.awaits) AS wakes
    FROM {schema}.instances i
    WHERE i.id = %(id)s::bigint AND i.status < 9
    FOR NO KEY UPDATE
),
holders AS MATERIALIZED (
    -- Those without a scope come last in the index; the one that has the key to itself may be newer all the same.
    (
        SELECT i.id FROM {schema}.instances i
        WHERE i.key = %(key)s::text AND i.status < 9
        ORDER BY i.key DESC, (CASE WHEN i.scope = 0 THEN i.id ELSE 0 END) DESC LIMIT 2
    )
    UNION
    SELECT i.id FROM {schema}.instances i
    WHERE i.key = %(key)s::text AND (CASE WHEN i.scope = 0 THEN i.id ELSE 0 END) = 0 AND i.status < 9
    ORDER BY 1 DESC
),
keyed AS MATERIALIZED (
    SELECT i.id, i.lane, i.crashes, i.line, i.status = 3 AND %(name)s::text = ANY (i.awaits) AS wakes
    FROM holders h
    JOIN {schema}.instances i ON i.id = ANY (ARRAY[h.id])
    WHERE i.status < 9
    LIMIT 1
    FOR NO KEY UPDATE OF i
),
found AS MATERIALIZED (
    SELECT t.* FROM target t UNION ALL SELECT k.* FROM keyed k
),
put AS (
    INSERT INTO {schema}.signals (instance_id, sent_at, name, payload, dedup_key)
    SELECT f.id, {clock}, %(name)s::text, %(payload)s::jsonb, %(dedup)s::text FROM found f
    ON CONFLICT (instance_id, dedup_key) WHERE dedup_key IS NOT NULL DO NOTHING
    RETURNING instance_id
),
fresh AS MATERIALIZED (
    SELECT f.id, f.wakes, f.line, l.queue, CASE WHEN f.wakes AND f.line IS NULL AND f.crashes = 0 AND NOT l.paused
        AND l.queue <> ALL ({part capped}) THEN (
        SELECT k.id FROM {schema}.workers k WHERE k.id = %(worker)s::int AND f.lane = ANY (%(lanes)s::int[])
    ) END AS worker
    FROM put p
    JOIN found f ON f.id = p.instance_id
    JOIN {schema}.lanes l ON l.id = f.lane
),
delivered AS (
    UPDATE {schema}.instances i
    SET inbox = coalesce(i.inbox, 0) + 1,
        status = CASE WHEN NOT f.wakes THEN i.status WHEN f.worker IS NULL THEN {schema}.ready(i.line) ELSE 2 END,
        worker = CASE WHEN f.wakes THEN f.worker ELSE i.worker END,
        rev = i.rev + CASE WHEN f.worker IS NULL THEN 0 ELSE 1 END,
        due_at = CASE WHEN f.wakes THEN {clock} ELSE i.due_at END,
        updated_at = CASE WHEN f.wakes THEN {clock} ELSE i.updated_at END
    FROM fresh f
    WHERE i.id = f.id
    RETURNING i.*, f.worker IS NOT NULL AS claimed
),
claimed AS (
    SELECT d.id, d.rev, d.lane, d.step, d.state, d.attempt, d.crashes, d.priority, d.key, d.due_at, d.inserted_at,
        d.parent_id,
        jsonb_build_object(
            'awaits', d.awaits, 'spawn', d.spawn, 'left', d.children_left, 'spare', d.children_spare,
            'rest', d.cancel_rest, 'signals', {schema}.read_inbox(d.id)
        ) AS waits,
        d.gate, d.own_gate, d.rate
    FROM delivered d
    WHERE d.claimed
),
knocked AS (
    INSERT INTO {schema}.knocks (line) SELECT f.line FROM fresh f WHERE f.wakes AND f.line IS NOT NULL
),
told AS (
    SELECT pg_notify('{channel}', CASE WHEN f.line IS NULL THEN 'q:' || f.queue ELSE 'k:' END)
    FROM fresh f
    WHERE f.wakes AND f.worker IS NULL AND (f.line IS NOT NULL OR %(notify)s::boolean)
)
SELECT f.id, n.queue, n.id IS NOT NULL, coalesce(n.wakes, false), (SELECT count(*) FROM told),
    coalesce(n.wakes AND n.line IS NOT NULL, false), c.*
FROM found f
LEFT JOIN fresh n ON n.id = f.id
LEFT JOIN claimed c ON c.id = f.id
