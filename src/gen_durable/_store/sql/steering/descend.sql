-- The live children of instances.
--
-- Parameters: parents, a JSON list of ids; spawn (null: of any).
-- Locks: none.
-- Index: instances_parent. OFFSET keeps the planner from walking it whole.
SELECT i.id
FROM jsonb_array_elements_text(%(parents)s::jsonb) AS p
CROSS JOIN LATERAL (
    SELECT c.id FROM {schema}.instances c
    WHERE c.parent_id = p::bigint AND (%(spawn)s::int IS NULL OR c.parent_spawn = %(spawn)s::int) AND c.status < 9
    OFFSET 0
) i
