-- Finds dead workers and gives back what they held; also claims whose owner is not in the workers table at all.
--
-- Parameters: worker (who asks: it never finds itself dead); heard, whether it has listened without a gap for a whole
--   lease, and watched, whether for some seconds (after an outage everybody is silent); lease (seconds of silence that
--   mean death); grace (seconds that a missing session lock must last); batch (rows at most); keep (write history).
-- Locks: one transaction at a time does this (advisory, tried, not waited for); the workers' rows that change; the
--   claims FOR NO KEY UPDATE SKIP LOCKED (one that is just being committed is left for the next pass).
-- Index: instances_claims, once per owner (a walk from owner to owner) and once per dead one.
-- Guard: a heartbeat that commits first changes seen_at and the worker lives. The reclaimed rows' new rev fences
--   whatever their old owner still sends. A lock says nothing just after a start of the server, which drops them all;
--   silence says nothing before the server was there to hear. A row that loses its worker again comes back after a random
--   delay that doubles with each death: of the rows that a crashing step takes down with it, the others get away from it.
WITH RECURSIVE lead AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock({lockspace}, 0) AS ok
),
seen AS MATERIALIZED (
    SELECT w.id, w.name, w.seen_at, w.suspect_at,
        %(heard)s::boolean AND w.id <> %(worker)s::int
            AND greatest(w.seen_at, pg_postmaster_start_time()) < {wall} - make_interval(secs => %(lease)s::float8)
            AS silent,
        %(watched)s::boolean AND w.id <> %(worker)s::int
            AND w.locked AND h.held IS NULL AND w.seen_at > pg_postmaster_start_time() AS lost
    FROM lead
    CROSS JOIN {schema}.workers w
    LEFT JOIN (
        SELECT k.objid::bigint AS held
        FROM pg_locks k
        WHERE k.locktype = 'advisory' AND k.classid = {lockspace}::oid AND k.objsubid = 2 AND k.granted
            AND k.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    ) h ON h.held = w.id
    WHERE lead.ok
),
suspected AS (
    UPDATE {schema}.workers w SET suspect_at = {wall}
    FROM seen s WHERE w.id = s.id AND s.lost AND NOT s.silent AND s.suspect_at IS NULL
    RETURNING w.id
),
cleared AS (
    UPDATE {schema}.workers w SET suspect_at = NULL
    FROM seen s WHERE w.id = s.id AND NOT s.lost AND s.suspect_at IS NOT NULL AND NOT s.silent
    RETURNING w.id
),
dead AS (
    DELETE FROM {schema}.workers w
    USING seen s
    WHERE w.id = s.id AND w.seen_at = s.seen_at
        AND (s.silent OR (s.lost AND s.suspect_at < {wall} - make_interval(secs => %(grace)s::float8)))
    RETURNING w.id, w.name
),
owners AS (
    SELECT (SELECT i.worker FROM {schema}.instances i WHERE i.status = 2 ORDER BY i.worker LIMIT 1)
    FROM lead WHERE lead.ok
    UNION ALL
    SELECT (
        SELECT i.worker FROM {schema}.instances i
        WHERE i.status = 2 AND i.worker > o.worker ORDER BY i.worker LIMIT 1
    )
    FROM owners o WHERE o.worker IS NOT NULL
),
orphaned AS MATERIALIZED (
    SELECT o.worker FROM owners o
    WHERE o.worker IS NOT NULL
        AND (o.worker NOT IN (SELECT w.id FROM {schema}.workers w) OR o.worker IN (SELECT d.id FROM dead d))
),
picked AS MATERIALIZED (
    SELECT r.id
    FROM orphaned o
    CROSS JOIN LATERAL (
        SELECT i.id FROM {schema}.instances i
        WHERE i.status = 2 AND i.worker = o.worker
        LIMIT %(batch)s::int
        FOR NO KEY UPDATE SKIP LOCKED
    ) r
),
back AS (
    UPDATE {schema}.instances i
    SET status = CASE WHEN i.crashes > 0 THEN 1 ELSE {schema}.ready(i.line) END, worker = NULL, rev = i.rev + 1,
        attempt = i.attempt + 1, crashes = i.crashes + 1, updated_at = {clock},
        due_at = CASE
            WHEN i.crashes > 0 THEN {clock} + make_interval(secs => random() * 2 ^ least(i.crashes, 6))
            ELSE i.due_at
        END
    FROM picked p
    WHERE i.id = ANY (ARRAY[p.id])
    RETURNING i.id, i.rev, i.lane, i.step, i.attempt, i.status, i.gate, i.line
),
knocked AS (
    INSERT INTO {schema}.knocks (line)
    SELECT b.gate FROM back b WHERE b.gate IS NOT NULL
    UNION
    SELECT b.line FROM back b WHERE b.status = 5
    RETURNING line
),
noted AS (
    INSERT INTO {schema}.transitions (instance_id, seq, at, attempt, outcome, step)
    SELECT b.id, b.rev, {clock}, b.attempt - 1, 6, b.step FROM back b WHERE %(keep)s::boolean
),
told AS (
    SELECT pg_notify('{channel}', m.message)
    FROM (
        SELECT 'q:' || l.queue AS message FROM back b JOIN {schema}.lanes l ON l.id = b.lane
        UNION
        SELECT 'k:' FROM knocked
    ) m
)
SELECT (SELECT count(*) FROM back), coalesce((SELECT jsonb_agg(jsonb_build_array(d.id, d.name)) FROM dead d), '[]'),
    (SELECT count(*) FROM told), (SELECT count(*) FROM suspected) + (SELECT count(*) FROM cleared)
