-- Makes the limits of an engine's configuration known, where that says something new: what it said before does not undo
-- what was set since.
--
-- Parameters: limits, a JSON list of {kind, name, amount, per, burst}.
-- Locks: the limits' rows, in the order of kind and name; it waits for claims under a queue's cap, and for another seed.
--   Rows that stay as they are it does not touch.
-- Index: limits' primary key.
-- Guard: ON CONFLICT compares with the row as whoever came first has left it: of two that say the same one writes.
-- Answer: (kind, name) of each limit that is new or has changed; who waits for it is to be looked at: knock.sql.
WITH given AS MATERIALIZED (
    SELECT g.kind, g.name, g.amount, g.per, g.burst, jsonb_build_array(g.amount, g.per, g.burst) AS said
    FROM jsonb_to_recordset(%(limits)s::jsonb) AS g (kind text, name text, amount float8, per float8, burst float8)
)
INSERT INTO {schema}.limits AS c (kind, name, amount, per, burst, configured, changed_at)
SELECT g.kind, g.name, g.amount, g.per, g.burst, g.said, {clock}
FROM given g
WHERE NOT EXISTS (
    SELECT FROM {schema}.limits k WHERE k.kind = g.kind AND k.name = g.name AND k.configured = g.said
)
ORDER BY g.kind, g.name
ON CONFLICT (kind, name) DO UPDATE
SET amount = EXCLUDED.amount, per = EXCLUDED.per, burst = EXCLUDED.burst, configured = EXCLUDED.configured,
    changed_at = EXCLUDED.changed_at, lowered = c.lowered OR EXCLUDED.amount < coalesce(c.amount, 1)
WHERE c.configured IS DISTINCT FROM EXCLUDED.configured
RETURNING c.kind, c.name
