-- What stands between a live instance and its next step.
--
-- Parameters: id; lease, the seconds of silence after which a worker is dead; grace, the seconds in which its heartbeat
--   says which machines it knows; most: what is counted stops there; shown: how many holders at most.
-- Locks: none.
-- Index: instances' primary key, instances_line, instances_holders, instances_drawn, instances_ready, instances_claims;
--   limits', lines' and lanes' primary keys.
-- Answer: status, due (seconds until its due time or its deadline, or null), paused (its queue); the workers that live,
--   that run its queue, that know its machine or may not have said so yet; cap of its queue, busy (what executes there);
--   ahead (rows before it: of its queue, or in its line); line, where it is blocked; amount, per, burst of that limit;
--   holding and holders (ids) of its slots; need (tokens for what is before it, and for itself), tokens (that there are).
WITH own AS MATERIALIZED (
    SELECT i.id, i.status, i.lane, i.priority, i.due_at, i.inserted_at, i.weight, l.queue, l.paused,
        CASE WHEN i.status = 5 THEN i.line END AS line
    FROM {schema}.instances i
    JOIN {schema}.lanes l ON l.id = i.lane
    WHERE i.id = %(id)s::bigint AND i.status < 9
)
SELECT o.status,
    CASE WHEN isfinite(o.due_at) THEN greatest(extract(epoch FROM o.due_at - {clock}), 0)::float8 END AS due,
    o.paused, w.living, w.serving, w.knowing, q.cap, q.busy,
    CASE WHEN o.status = 5 THEN a.ahead ELSE r.ahead END AS ahead,
    o.line, c.amount, c.per, c.burst, h.holding, h.holders, t.need, t.tokens
FROM own o
CROSS JOIN LATERAL (
    SELECT count(*) AS living, count(*) FILTER (WHERE jsonb_exists(k.queues, o.queue)) AS serving,
        count(*) FILTER (
            WHERE o.lane = ANY (k.lanes) OR k.started_at > {wall} - make_interval(secs => %(grace)s::float8)
                OR o.inserted_at > {clock} - make_interval(secs => %(grace)s::float8)
        ) AS knowing
    FROM {schema}.workers k
    WHERE k.seen_at > {wall} - make_interval(secs => %(lease)s::float8)
) w
LEFT JOIN LATERAL (
    SELECT g.amount AS cap, (
        SELECT count(*) FROM {schema}.instances i JOIN {schema}.lanes l ON l.id = i.lane
        WHERE i.status = 2 AND l.queue = o.queue
    ) AS busy
    FROM {schema}.limits g
    WHERE o.status = 0 AND g.kind = 'queue' AND g.name = o.queue AND g.amount IS NOT NULL
) q ON true
LEFT JOIN LATERAL (
    SELECT count(*) AS ahead
    FROM (
        SELECT FROM {schema}.lanes l
        CROSS JOIN LATERAL (
            SELECT FROM {schema}.instances i
            WHERE i.lane = l.id AND i.status = 0 AND (i.priority, i.due_at, i.id) < (o.priority, o.due_at, o.id)
            LIMIT %(most)s::int
        ) i
        WHERE l.queue = o.queue
        LIMIT %(most)s::int
    ) s
) r ON o.status = 0
LEFT JOIN LATERAL (
    SELECT count(*) AS ahead, coalesce(sum(coalesce(s.weight, 1)), 0) AS weight
    FROM (
        SELECT i.weight FROM {schema}.instances i
        WHERE i.line = o.line AND i.status = 5 AND (i.priority, i.due_at, i.id) < (o.priority, o.due_at, o.id)
        LIMIT %(most)s::int
    ) s
) a ON o.line IS NOT NULL
LEFT JOIN {schema}.limits c
    ON c.kind = CASE left(o.line, 1) WHEN 'c' THEN 'concurrency' ELSE 'rate' END AND c.name = {schema}.limit_of(o.line)
LEFT JOIN LATERAL (
    SELECT count(*) AS holding, (array_agg(s.id ORDER BY s.id))[1:%(shown)s::int] AS holders
    FROM (
        SELECT i.id FROM {schema}.instances i
        WHERE i.gate = o.line AND i.gate IS NOT NULL AND i.status IN (0, 2)
        LIMIT %(most)s::int
    ) s
) h ON o.line LIKE 'c%%'
LEFT JOIN LATERAL (
    SELECT a.weight + least(coalesce(o.weight, 1), c.burst) AS need,
        least(
            c.burst - d.drawn,
            coalesce(b.tokens + greatest(extract(epoch FROM {clock} - b.filled_at), 0) * c.amount / c.per, c.burst)
        ) AS tokens
    FROM (
        SELECT coalesce(sum(least(coalesce(i.weight, 1), c.burst)), 0) AS drawn FROM {schema}.instances i
        WHERE i.rate = o.line AND i.rate IS NOT NULL AND i.status = 0
    ) d
    LEFT JOIN {schema}.lines b ON b.line = o.line
) t ON o.line LIKE 'r%%' AND c.amount IS NOT NULL
