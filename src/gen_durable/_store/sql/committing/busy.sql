-- Which rows somebody else has locked just now: those that a commit would wait for.
--
-- Parameters: ids, a JSON list.
-- Locks: the others FOR UPDATE SKIP LOCKED, until the statement's end; it waits for none.
-- Index: primary key.
-- Guard: as strong as a delete's lock: where the row is to be updated only, and somebody has but a foreign key's lock, it
--   waits too. What it says may be otherwise a moment later, and then the commit says so again.
WITH given AS MATERIALIZED (
    SELECT DISTINCT g::bigint AS id FROM jsonb_array_elements_text(%(ids)s::jsonb) AS g
),
free AS MATERIALIZED (
    SELECT i.id
    FROM given g
    JOIN {schema}.instances i ON i.id = ANY (ARRAY[g.id])
    FOR UPDATE OF i SKIP LOCKED
)
-- Both lists meet by grouping: a join of them is a loop in a loop.
SELECT u.id
FROM (
    SELECT i.id, 1 AS there, 0 AS free
    FROM given g
    JOIN {schema}.instances i ON i.id = ANY (ARRAY[g.id])
    UNION ALL
    SELECT f.id, 0, 1 FROM free f
) u
GROUP BY u.id
HAVING max(u.there) = 1 AND max(u.free) = 0
