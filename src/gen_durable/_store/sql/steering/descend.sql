-- The live children of instances, a batch at a time.
--
-- Parameters: parents, a JSON list of ids; spawn (null: of any); after (id); batch (rows at most).
-- Locks: none.
-- Index: instances_parent.
SELECT i.id
FROM {schema}.instances i
WHERE i.parent_id = ANY (ARRAY(SELECT p::bigint FROM jsonb_array_elements_text(%(parents)s::jsonb) AS p))
    AND (%(spawn)s::int IS NULL OR i.parent_spawn = %(spawn)s::int) AND i.status < 9 AND i.id > %(after)s::bigint
ORDER BY i.id
LIMIT %(batch)s::int
