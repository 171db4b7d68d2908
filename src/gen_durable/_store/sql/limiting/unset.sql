-- Takes a limit away: of a queue, which then has no cap, or of a concurrency key, of which then one runs at a time.
--
-- Parameters: kind (concurrency, queue); name.
-- Locks: the limit's row; it waits for a claim under a queue's cap.
-- Index: limits' primary key.
-- Guard: the row stays, without an amount, for what the configuration said: a start which says it again undoes nothing.
-- Answer: a row, when there was one.
UPDATE {schema}.limits c
SET amount = NULL, changed_at = {clock}, lowered = c.lowered OR c.amount > 1
WHERE c.kind = %(kind)s::text AND c.name = %(name)s::text AND c.kind <> 'rate' AND c.amount IS NOT NULL
RETURNING c.kind
