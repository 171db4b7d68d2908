-- Makes machines known to the database, for those who insert from SQL: what their classes say.
--
-- Parameters: machines, a JSON list of objects with the table's columns.
-- Locks: the machines' rows, in the order of name and version. Rows that stay as they are it does not touch.
-- Index: machines' primary key.
-- Guard: none needed: of two engines that say different things the last one counts.
WITH given AS MATERIALIZED (
    SELECT g.*
    FROM jsonb_to_recordset(%(machines)s::jsonb) AS g (
        name text, version int, queue text, step text, priority smallint, retention double precision, history boolean,
        max_bytes int, fields jsonb, limits jsonb
    )
)
INSERT INTO {schema}.machines AS m (
    name, version, queue, step, priority, retention, history, max_bytes, fields, limits, changed_at
)
SELECT g.name, g.version, g.queue, g.step, g.priority, g.retention, g.history, g.max_bytes, g.fields, g.limits, {clock}
FROM given g
WHERE NOT EXISTS (
    SELECT FROM {schema}.machines k
    WHERE k.name = g.name AND k.version = g.version
        AND (k.queue, k.step, k.priority, k.history, k.max_bytes, k.fields, k.limits)
            = (g.queue, g.step, g.priority, g.history, g.max_bytes, g.fields, g.limits)
        AND k.retention IS NOT DISTINCT FROM g.retention
)
ORDER BY g.name, g.version
ON CONFLICT (name, version) DO UPDATE
SET queue = EXCLUDED.queue, step = EXCLUDED.step, priority = EXCLUDED.priority, retention = EXCLUDED.retention,
    history = EXCLUDED.history, max_bytes = EXCLUDED.max_bytes, fields = EXCLUDED.fields, limits = EXCLUDED.limits,
    changed_at = EXCLUDED.changed_at
