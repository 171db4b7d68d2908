-- The live children of instances.
--
-- Parameters: parents, a JSON list of ids; spawn (null: of any).
-- Locks: none.
-- Index: instances_parent; see claim.sql for the form of the condition.
SELECT i.id
FROM jsonb_array_elements_text(%(parents)s::jsonb) AS p
JOIN {schema}.instances i ON i.parent_id = ANY (ARRAY[p::bigint])
WHERE (%(spawn)s::int IS NULL OR i.parent_spawn = %(spawn)s::int) AND i.status < 9
