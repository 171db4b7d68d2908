-- The children of one spawn, in the order given: those that have ended and those that have not.
--
-- Parameters: parent; spawn.
-- Locks: none.
-- Index: instances_parent, finished_parent of each partition.
SELECT i.id, l.machine, i.key, i.status, NULL::jsonb AS result, i.error
FROM {schema}.instances i
JOIN {schema}.lanes l ON l.id = i.lane
WHERE i.parent_id = %(parent)s::bigint AND i.parent_spawn = %(spawn)s::int AND i.status < 9
UNION ALL
SELECT f.id, l.machine, f.key, f.status, f.result, f.error
FROM {schema}.finished f
JOIN {schema}.lanes l ON l.id = f.lane
WHERE f.parent_id = %(parent)s::bigint AND f.parent_spawn = %(spawn)s::int
ORDER BY 1
