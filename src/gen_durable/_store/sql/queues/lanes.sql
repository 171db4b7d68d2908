-- The numbers of lanes, making those that are missing.
--
-- Parameters: lanes, a JSON list of {queue, machine, version, retention}, sorted; retention null: for ever.
-- Locks: the queues' rows (created where missing; updated without a change, because only that sees a pause which commits
--   meanwhile, also one that makes the queue), then the new lanes, both in the order of the list.
-- Index: queues' primary key, lanes' unique constraint.
WITH given AS MATERIALIZED (
    SELECT g.queue, g.machine, g.version, g.retention
    FROM jsonb_to_recordset(%(lanes)s::jsonb)
        AS g (queue text, machine text, version int, retention double precision)
    ORDER BY g.queue, g.machine, g.version
),
made AS (
    INSERT INTO {schema}.queues AS q (name)
    SELECT DISTINCT g.queue FROM given g ORDER BY g.queue
    ON CONFLICT (name) DO UPDATE SET paused = q.paused
    RETURNING q.name, q.paused
),
fresh AS (
    INSERT INTO {schema}.lanes (queue, machine, version, retention, paused)
    SELECT g.queue, g.machine, g.version, g.retention, k.paused
    FROM given g
    JOIN made k ON k.name = g.queue
    WHERE NOT EXISTS (
        SELECT 1 FROM {schema}.lanes l
        WHERE l.queue = g.queue AND l.machine = g.machine AND l.version = g.version
            AND l.retention IS NOT DISTINCT FROM g.retention
    )
    ORDER BY g.queue, g.machine, g.version
    ON CONFLICT (queue, machine, version) DO UPDATE SET retention = EXCLUDED.retention
    RETURNING queue, machine, version, id
)
SELECT f.queue, f.machine, f.version, f.id, (SELECT count(*) FROM made) FROM fresh f
UNION
SELECT l.queue, l.machine, l.version, l.id, (SELECT count(*) FROM made)
FROM {schema}.lanes l
JOIN given g ON g.queue = l.queue AND g.machine = l.machine AND g.version = l.version
