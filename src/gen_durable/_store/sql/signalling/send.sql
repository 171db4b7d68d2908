-- Puts a signal into a live instance's inbox, and wakes the instance when it waits for that name.
--
-- Parameters: id or key (the other null); name; payload (JSON); dedup (null: none); notify, whether to wake idle workers.
-- Locks: the instance's row, whatever its status, then the new inbox row. It waits for a commit in progress: a row that is
--   just about to wait is found waiting, one that ends is gone.
-- Index: the primary key, or instances_key (of several live ones with the key the newest is meant); signals_dedup.
-- Guard: the row's lock, taken before anything is looked at. The update reads the row as it is under the lock.
-- Answer: (id, queue, whether the signal is new, whether it woke the row, notifications); no row: there is no such live
--   instance, and nothing was stored.
WITH target AS MATERIALIZED (
    SELECT i.id
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
    SELECT i.id
    FROM holders h
    JOIN {schema}.instances i ON i.id = ANY (ARRAY[h.id])
    WHERE i.status < 9
    LIMIT 1
    FOR NO KEY UPDATE OF i
),
found AS MATERIALIZED (
    SELECT t.id FROM target t UNION ALL SELECT k.id FROM keyed k
),
put AS (
    INSERT INTO {schema}.signals (instance_id, sent_at, name, payload, dedup_key)
    SELECT f.id, {clock}, %(name)s::text, %(payload)s::jsonb, %(dedup)s::text FROM found f
    ON CONFLICT (instance_id, dedup_key) WHERE dedup_key IS NOT NULL DO NOTHING
    RETURNING instance_id
),
delivered AS (
    UPDATE {schema}.instances i
    SET inbox = coalesce(i.inbox, 0) + 1,
        status = CASE WHEN i.status = 3 AND %(name)s::text = ANY (i.awaits) THEN 0 ELSE i.status END,
        due_at = CASE WHEN i.status = 3 AND %(name)s::text = ANY (i.awaits) THEN {clock} ELSE i.due_at END,
        updated_at = CASE WHEN i.status = 3 AND %(name)s::text = ANY (i.awaits) THEN {clock} ELSE i.updated_at END
    FROM put p
    WHERE i.id = p.instance_id
    RETURNING i.id, i.lane, i.status = 0 AND i.due_at = {clock} AND i.updated_at = {clock} AS woken
),
placed AS MATERIALIZED (
    SELECT d.id, d.woken, l.queue FROM delivered d JOIN {schema}.lanes l ON l.id = d.lane
),
told AS (
    SELECT pg_notify('{channel}', 'q:' || p.queue) FROM placed p WHERE p.woken AND %(notify)s::boolean
)
SELECT f.id, p.queue, p.id IS NOT NULL, coalesce(p.woken, false), (SELECT count(*) FROM told)
FROM found f
LEFT JOIN placed p ON p.id = f.id
