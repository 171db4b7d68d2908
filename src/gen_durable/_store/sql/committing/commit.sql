-- Commits a batch of outcomes: each row goes on, goes back, waits, or ends, with all that follows, in one statement.
--
-- Parameters: worker; outcomes, a JSON list sorted by id (fields below; "op" 0 goes on under the same claim, 1 goes back
--   to the queue or to sleep, 2 ends, 3 waits for a signal, 4 waits for its children); first, a sorted JSON list of the
--   ids that are locked before everything else: the parents of children that end, and of the batch's own rows those that
--   have spawned, that wait for a signal, or that are children; wake, the queues to notify (text[]).
-- Locks: first the rows of "first" in id order; then each other row of the batch once, in id order within each kind.
--   A row is never in two batches that can both match: a stale outcome's rev does not match and takes no lock. Two batches
--   meet only in rows of "first", and there in one order, which is also that of a cancel of several rows; what else may
--   hold a row (a signal) holds no other that it would wait for.
-- Index: primary key; see claim.sql for the form of the condition. A row that goes on changes no indexed column (HOT).
--   signals' primary key, for rows that have an inbox.
-- Guard: the claim's rev and worker. What does not match is not in the answer. A row that waits for a signal looks into
--   its inbox under its lock ("awake"): a signal that committed before is seen, one that comes later sees it wait.
--   A join counts only while its parent waits for this very spawn.
--   An outcome with a mark comes in its step's own transaction, which carries that mark (gen_durable.step); where its claim is
--   lost, or the transaction is not that one any more, the statement fails, so that a COMMIT sent behind it can't take
--   effect: the error's text is 'claim lost: (id)' or 'mark lost: (id)', as what can't be a number.
-- Answer: (id, new rev, lane) of each row that was committed, the lane only where it can run again at once; (id, -1, lane)
--   of each parent whose join opened; (how many notifications went out, -2, null) if any; (how many lines were knocked
--   at, -3, null) if any; (how many keys stay taken, -5, null) if any.
-- The transition that ends an instance needs no row of its own: the terminal row says all of it (its "took" is set then).
{part locked}
o AS MATERIALIZED (
    SELECT g.id, g.rev, coalesce(g.op, 2::smallint) AS op, g.step, g.state, g.lane, g.priority, g.delay, g.attempt,
        g.crashes, g.result, g.keep, g.error, coalesce(g.kind, 3::smallint) AS kind, g.ran, coalesce(g.tried, 0) AS tried,
        g.took, coalesce(g.history, 1::smallint) AS history, g.signals, g.afresh, g.awaits, g.children, g.spare, g.rest,
        g.limits, g.gate, g.rate, g.weight, coalesce(g.gate, g.rate) AS line, g.mark,
        CASE WHEN g.op = 3 THEN {schema}.has_new_signal(g.id, g.awaits, coalesce(g.signals, ARRAY[]::bigint[])) END AS awake
    FROM (SELECT count(*) FROM locked) AS before  -- everything below comes after the locks
    CROSS JOIN json_to_recordset(%(outcomes)s::json) AS g (
        id bigint, rev bigint, op smallint,                     -- absent: 2
        step text, state jsonb,                                 -- absent: unchanged
        lane int, priority smallint, delay double precision,    -- of what goes back; delay absent in 3 and 4: no deadline
        attempt int, crashes smallint,
        result jsonb, keep double precision,                    -- of what ends; keep absent: for ever
        error jsonb,
        kind smallint, ran text, tried int, took real,          -- absent: 3 (done), the row's step, 0
        history smallint,                                       -- 0 off, 1 (or absent) steps, 2 with the state
        signals bigint[],                                       -- that the step was handed: marked in 3, else consumed
        afresh bigint[],                                        -- that an earlier step was handed, and nobody consumed
        awaits text[], children int, spare int, rest boolean,   -- of what waits
        limits boolean, gate text, rate text, weight int,       -- of the next step; limits absent: unchanged
        mark text                                               -- of a transactional step: its transaction's
    )
),
went_on AS (
    UPDATE {schema}.instances i
    SET step = o.step, state = coalesce(o.state, i.state), rev = i.rev + 1, attempt = 0, crashes = 0, error = o.error,
        awaits = NULL, children_left = NULL, children_spare = NULL, cancel_rest = NULL, updated_at = {clock},
        gate = CASE WHEN o.limits THEN o.gate ELSE i.gate END, rate = CASE WHEN o.limits THEN o.rate ELSE i.rate END,
        weight = CASE WHEN o.limits THEN o.weight ELSE i.weight END,
        line = CASE WHEN o.limits THEN o.line ELSE i.line END
    FROM o
    WHERE o.op = 0 AND i.id >= o.id AND i.id <= o.id AND i.rev = o.rev AND i.worker = %(worker)s::int
    RETURNING i.id, i.rev, NULL::int AS lane, i.state, o.kind, o.ran, o.tried, o.took, o.error, o.history, o.signals,
        o.afresh
),
went_back AS (
    UPDATE {schema}.instances i
    SET status = CASE
            WHEN o.op = 1 AND o.delay > 0 THEN 1
            WHEN o.op = 3 AND NOT o.awake THEN 3
            WHEN o.op = 4 AND o.children > 0 THEN 4
            ELSE {schema}.ready(CASE WHEN o.limits THEN o.line ELSE i.line END)
        END,
        worker = NULL, rev = i.rev + 1,
        due_at = CASE
            WHEN o.op = 1 THEN {clock} + make_interval(secs => coalesce(o.delay, 0))
            WHEN o.awake OR o.children = 0 THEN {clock}
            ELSE coalesce({clock} + make_interval(secs => o.delay), 'infinity')
        END,
        lane = coalesce(o.lane, i.lane), priority = coalesce(o.priority, i.priority),
        step = o.step, state = coalesce(o.state, i.state), attempt = o.attempt, crashes = o.crashes,
        error = o.error, updated_at = {clock},
        awaits = CASE WHEN o.op = 3 THEN o.awaits WHEN o.kind = 1 THEN i.awaits END,
        spawn = CASE WHEN o.op = 4 THEN coalesce(i.spawn, 0) + 1 ELSE i.spawn END,
        children_left = CASE WHEN o.op = 4 THEN o.children WHEN o.kind = 1 THEN i.children_left END,
        children_spare = CASE WHEN o.op = 4 THEN o.spare WHEN o.kind = 1 THEN i.children_spare END,
        cancel_rest = CASE WHEN o.op = 4 THEN o.rest WHEN o.kind = 1 THEN i.cancel_rest END,
        gate = CASE WHEN o.limits THEN o.gate ELSE i.gate END, rate = CASE WHEN o.limits THEN o.rate ELSE i.rate END,
        weight = CASE WHEN o.limits THEN o.weight ELSE i.weight END,
        line = CASE WHEN o.limits THEN o.line ELSE i.line END
    FROM o
    WHERE o.op IN (1, 3, 4) AND i.id = ANY (ARRAY[o.id]) AND i.rev = o.rev AND i.worker = %(worker)s::int
    RETURNING i.id, i.rev, CASE WHEN o.op > 1 AND i.status = 0 THEN i.lane END AS lane, i.state, o.kind, o.ran, o.tried,
        o.took, o.error, o.history, CASE WHEN o.kind <> 1 THEN o.signals END AS signals, o.afresh,
        CASE WHEN i.status = 5 THEN i.line END AS line
),
{part ended}
done AS MATERIALIZED (
    SELECT w.id, w.rev, w.lane, w.state, w.kind, w.ran, w.tried, w.took, w.error, w.history, w.signals,
        w.afresh
    FROM went_on w
    UNION ALL
    SELECT b.id, b.rev, b.lane, b.state, b.kind, b.ran, b.tried, b.took, b.error, b.history, b.signals,
        b.afresh
    FROM went_back b
    UNION ALL
    SELECT e.id, e.rev, NULL, e.state, e.kind, e.ran, e.tried, e.took, e.error,
        CASE WHEN e.speaks THEN 0 ELSE e.history END, NULL, NULL
    FROM ended e
),
noted AS (
    INSERT INTO {schema}.transitions (instance_id, seq, at, worker, attempt, outcome, took, step, error, state)
    SELECT d.id, d.rev, {clock}, %(worker)s::int, d.tried, d.kind, d.took, d.ran, d.error,
        CASE WHEN d.history = 2 THEN d.state END
    FROM done d
    WHERE d.history > 0
),
handed AS MATERIALIZED (
    SELECT d.id AS instance_id, s AS id, CASE WHEN d.kind = 7 THEN 1 ELSE 2 END AS status
    FROM done d CROSS JOIN LATERAL unnest(d.signals) AS s
    WHERE d.signals IS NOT NULL
    UNION ALL
    SELECT d.id, s, 0 FROM done d CROSS JOIN LATERAL unnest(d.afresh) AS s WHERE d.afresh IS NOT NULL
),
consumed AS (
    DELETE FROM {schema}.signals s
    USING handed h
    WHERE h.status = 2 AND s.instance_id = ANY (ARRAY[h.instance_id]) AND s.id >= h.id AND s.id <= h.id
        AND s.dedup_key IS NULL
),
marked AS (
    UPDATE {schema}.signals s
    SET status = h.status, payload = CASE WHEN h.status < 2 THEN s.payload END
    FROM handed h
    WHERE s.instance_id = ANY (ARRAY[h.instance_id]) AND s.id >= h.id AND s.id <= h.id
        AND (h.status < 2 OR s.dedup_key IS NOT NULL)
),
{part joined}
knocked AS (
    INSERT INTO {schema}.knocks (line)
    SELECT b.line FROM went_back b WHERE b.line IS NOT NULL
    UNION
    SELECT j.line FROM joined j WHERE j.status = 5
    RETURNING line
),
told AS (
    SELECT pg_notify('{channel}', m.message)
    FROM (
        SELECT 'q:' || q AS message FROM unnest(%(wake)s::text[]) AS q
        UNION
        SELECT 'q:' || l.queue
        FROM (
            SELECT j.lane FROM joined j WHERE j.status = 0 UNION SELECT d.lane FROM done d WHERE d.lane IS NOT NULL
        ) a
        JOIN {schema}.lanes l ON l.id = a.lane
        UNION
        SELECT 'e:' || e.id FROM ended e WHERE e.watched
    ) m
)
SELECT d.id, d.rev, d.lane FROM done d
UNION ALL
SELECT j.id, -1, j.lane FROM joined j WHERE j.status = 0
UNION ALL
SELECT count(*), -2, NULL FROM told HAVING count(*) > 0
UNION ALL
SELECT count(*), -5, NULL FROM reserved HAVING count(*) > 0
UNION ALL
SELECT count(*), -3, NULL FROM knocked HAVING count(*) > 0
UNION ALL
SELECT CASE WHEN d.id IS NULL THEN ('claim lost: ' || o.id)::bigint ELSE ('mark lost: ' || o.id)::bigint END, -4, NULL
FROM o
LEFT JOIN done d ON d.id = o.id
WHERE o.mark IS NOT NULL AND (d.id IS NULL OR coalesce(current_setting('gen_durable.step', true), '') <> o.mark)
