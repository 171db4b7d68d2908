-- How a group of outcomes ends instances: the rows leave for "finished", and a key that outlives its instance keeps a stub.
-- Part of the committing statements. "o" gives id, rev, op, state, result, keep, error, kind, ran, tried, took, history.
ended AS (
    DELETE FROM {schema}.instances i
    USING o
    WHERE o.op = 2 AND i.id >= o.id AND i.id <= o.id AND i.rev = o.rev AND i.worker = %(worker)s::int
    RETURNING i.id, i.rev + 1 AS rev, coalesce(o.state, i.state) AS state, i.inserted_at, i.lane, i.crashes, i.priority,
        i.key, i.scope, i.inbox, i.watched, i.parent_id, i.parent_spawn, i.spawn,
        i.awaits, i.children_left, i.children_spare, i.cancel_rest, i.gate, i.own_gate, i.rate, i.weight,
        o.result, o.keep, o.error, o.kind, coalesce(o.ran, i.step) AS ran, o.tried, o.took, o.history,
        o.history = 1 AND (o.kind > 3 OR o.error IS NULL) AS speaks  -- its last transition is the terminal row itself
),
buried AS (
    INSERT INTO {schema}.finished (
        id, rev, inserted_at, finished_at, expires_at, bucket, lane, worker, attempt, crashes, status, priority, step,
        key, state, result, error, took, scope, parent_id, parent_spawn, spawn,
        awaits, children_left, children_spare, cancel_rest, inbox, gate, own_gate, rate, weight
    )
    SELECT e.id, e.rev, e.inserted_at, {clock}, x.expires_at, {schema}.bucket_of(e.keep, x.expires_at),
        e.lane, %(worker)s::int, e.tried, e.crashes,
        e.kind + 3, e.priority, e.ran, e.key, e.state, e.result, CASE WHEN e.kind > 3 THEN e.error END,
        CASE WHEN e.speaks THEN e.took END, e.scope, e.parent_id, e.parent_spawn, e.spawn,
        CASE WHEN e.kind > 3 THEN e.awaits END, CASE WHEN e.kind > 3 THEN e.children_left END,
        CASE WHEN e.kind > 3 THEN e.children_spare END, CASE WHEN e.kind > 3 THEN e.cancel_rest END,
        CASE WHEN e.kind > 3 THEN x.inbox END, CASE WHEN e.kind > 3 THEN e.gate END,
        CASE WHEN e.kind > 3 THEN e.own_gate END, CASE WHEN e.kind > 3 THEN e.rate END,
        CASE WHEN e.kind > 3 THEN e.weight END
    FROM ended e
    CROSS JOIN LATERAL (
        SELECT coalesce({clock} + make_interval(secs => e.keep), 'infinity') AS expires_at,
            CASE WHEN e.inbox IS NOT NULL THEN {schema}.empty_inbox(e.id) END AS inbox
    ) x
),
reserved AS MATERIALIZED (
    -- A function: an INSERT here would cost each group, and nearly none reserves anything.
    SELECT {schema}.reserve_key(e.id, {clock}, e.keep, e.inserted_at, e.lane, e.ran, e.key, e.scope)
    FROM ended e
    WHERE (e.scope >> (e.kind + 3)) & 1 = 1
),
