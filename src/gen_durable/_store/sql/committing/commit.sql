-- Commits a batch of outcomes: each row goes on, goes back to its queue, or ends, with its history, in one statement.
--
-- Parameters: worker; outcomes, a JSON list sorted by id (fields below; "op" 0 goes on under the same claim, 1 goes back
--   to the queue or to sleep, 2 ends); wake, the queues to notify (text[]).
-- Locks: each row of the batch once, in id order within each kind. A row is never in two batches that can both match:
--   a stale outcome's rev does not match and takes no lock.
-- Index: primary key; see claim.sql for the form of the condition. A row that goes on changes no indexed column (HOT).
-- Guard: the claim's rev and worker. What does not match is not in the answer.
-- Answer: id and new rev of each row that was committed (and, with an id below zero, how many notifications went out).
-- The transition that ends an instance needs no row of its own: the terminal row says all of it (its "took" is set then).
-- A terminal row's bucket is its day of expiry where it is kept between a day and 31 days, else "infinity".
WITH o AS MATERIALIZED (
    SELECT g.id, g.rev, coalesce(g.op, 2::smallint) AS op, g.step, g.state, g.lane, g.priority, g.delay, g.attempt,
        g.crashes, g.result, g.keep, g.error, coalesce(g.kind, 3::smallint) AS kind, g.ran, coalesce(g.tried, 0) AS tried,
        g.took, coalesce(g.history, 1::smallint) AS history
    FROM json_to_recordset(%(outcomes)s::json) AS g (
        id bigint, rev bigint, op smallint,                     -- absent: 2
        step text, state jsonb,                                 -- absent: unchanged
        lane int, priority smallint, delay double precision,    -- of what goes back
        attempt int, crashes smallint,
        result jsonb, keep double precision,                    -- of what ends; keep absent: for ever
        error jsonb,
        kind smallint, ran text, tried int, took real,          -- absent: 3 (done), the row's step, 0
        history smallint                                        -- 0 off, 1 (or absent) steps, 2 with the state
    )
),
went_on AS (
    UPDATE {schema}.instances i
    SET step = o.step, state = coalesce(o.state, i.state), rev = i.rev + 1, attempt = 0, crashes = 0, error = o.error,
        updated_at = {clock}
    FROM o
    WHERE o.op = 0 AND i.id >= o.id AND i.id <= o.id AND i.rev = o.rev AND i.worker = %(worker)s::int
    RETURNING i.id, i.rev, i.state, o.kind, o.ran, o.tried, o.took, o.error, o.history
),
went_back AS (
    UPDATE {schema}.instances i
    SET status = CASE WHEN o.delay > 0 THEN 1 ELSE 0 END, worker = NULL, rev = i.rev + 1,
        due_at = {clock} + make_interval(secs => coalesce(o.delay, 0)),
        lane = coalesce(o.lane, i.lane), priority = coalesce(o.priority, i.priority),
        step = o.step, state = coalesce(o.state, i.state), attempt = o.attempt, crashes = o.crashes,
        error = o.error, updated_at = {clock}
    FROM o
    WHERE o.op = 1 AND i.id >= o.id AND i.id <= o.id AND i.rev = o.rev AND i.worker = %(worker)s::int
    RETURNING i.id, i.rev, i.state, o.kind, o.ran, o.tried, o.took, o.error, o.history
),
ended AS (
    DELETE FROM {schema}.instances i
    USING o
    WHERE o.op = 2 AND i.id >= o.id AND i.id <= o.id AND i.rev = o.rev AND i.worker = %(worker)s::int
    RETURNING i.id, i.rev + 1 AS rev, coalesce(o.state, i.state) AS state, i.inserted_at, i.lane, i.crashes, i.priority,
        i.key, o.result, o.keep, o.error, o.kind, coalesce(o.ran, i.step) AS ran, o.tried, o.took, o.history,
        o.history = 1 AND (o.kind > 3 OR o.error IS NULL) AS speaks  -- its last transition is the terminal row itself
),
buried AS (
    INSERT INTO {schema}.finished (
        id, rev, inserted_at, finished_at, expires_at, bucket, lane, worker, attempt, crashes, status, priority, step,
        key, state, result, error, took
    )
    SELECT e.id, e.rev, e.inserted_at, {clock}, x.expires_at,
        CASE WHEN e.keep BETWEEN 86400 AND 2678400 THEN (x.expires_at AT TIME ZONE 'UTC')::date ELSE 'infinity' END,
        e.lane, %(worker)s::int, e.tried, e.crashes,
        e.kind + 3, e.priority, e.ran, e.key, e.state, e.result, CASE WHEN e.kind > 3 THEN e.error END,
        CASE WHEN e.speaks THEN e.took END
    FROM ended e
    CROSS JOIN LATERAL (
        SELECT coalesce({clock} + make_interval(secs => e.keep), 'infinity') AS expires_at
    ) x
),
done AS (
    SELECT w.id, w.rev, w.state, w.kind, w.ran, w.tried, w.took, w.error, w.history FROM went_on w
    UNION ALL
    SELECT b.id, b.rev, b.state, b.kind, b.ran, b.tried, b.took, b.error, b.history FROM went_back b
    UNION ALL
    SELECT e.id, e.rev, e.state, e.kind, e.ran, e.tried, e.took, e.error, CASE WHEN e.speaks THEN 0 ELSE e.history END
    FROM ended e
),
noted AS (
    INSERT INTO {schema}.transitions (instance_id, seq, at, worker, attempt, outcome, took, step, error, state)
    SELECT d.id, d.rev, {clock}, %(worker)s::int, d.tried, d.kind, d.took, d.ran, d.error,
        CASE WHEN d.history = 2 THEN d.state END
    FROM done d
    WHERE d.history > 0
),
told AS (
    SELECT pg_notify('{channel}', 'q:' || q) FROM unnest(%(wake)s::text[]) AS q
)
SELECT d.id, d.rev FROM done d
UNION ALL
SELECT -count(*), 0 FROM told HAVING count(*) > 0
