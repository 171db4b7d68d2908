-- Sets a limit for the whole cluster; it counts for every look and every claim that begins when this has committed.
--
-- Parameters: kind (concurrency, rate, queue); name; amount; per and burst (of a rate).
-- Locks: the limit's row; it waits for a claim under a queue's cap.
-- Index: limits' primary key.
-- Guard: ON CONFLICT; what the configuration said stays, so that a start which says it again undoes nothing.
-- Answer: a row, when something is new.
INSERT INTO {schema}.limits AS c (kind, name, amount, per, burst, changed_at)
VALUES (%(kind)s::text, %(name)s::text, %(amount)s::float8, %(per)s::float8, %(burst)s::float8, {clock})
ON CONFLICT (kind, name) DO UPDATE
SET amount = EXCLUDED.amount, per = EXCLUDED.per, burst = EXCLUDED.burst, changed_at = EXCLUDED.changed_at,
    lowered = c.lowered OR EXCLUDED.amount < coalesce(c.amount, 1)
WHERE (c.amount, c.per, c.burst) IS DISTINCT FROM (EXCLUDED.amount, EXCLUDED.per, EXCLUDED.burst)
RETURNING c.kind
