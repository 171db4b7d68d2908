-- Which rows somebody else has locked just now: those that a commit would wait for.
--
-- Parameters: ids, a JSON list.
-- Locks: the others FOR UPDATE SKIP LOCKED, until the statement's end; it waits for none.
-- Index: primary key.
-- Guard: as strong as a delete's lock: where the row is to be updated only, and somebody has but a foreign key's lock, it
--   waits too. What it says may be otherwise a moment later, and then the commit says so again.
-- Plan: each id is looked up by itself: a subquery with a lock or a limit can't be joined the other way round.
SELECT g.id::bigint
FROM jsonb_array_elements_text(%(ids)s::jsonb) AS g (id)
CROSS JOIN LATERAL (
    SELECT i.id FROM {schema}.instances i WHERE i.id = g.id::bigint LIMIT 1
) there
LEFT JOIN LATERAL (
    SELECT i.id FROM {schema}.instances i WHERE i.id = g.id::bigint LIMIT 1 FOR UPDATE SKIP LOCKED
) free ON true
WHERE free.id IS NULL
