-- What is to be steered: an instance by id, or by key (the live one, else the one that ended last).
--
-- Parameters: id or key (the other null).
-- Locks: none.
-- Index: both tables' index on id; instances_key, finished_key.
-- Answer: id, status, queue, key; no row where there is none.
SELECT v.id, v.status, v.queue, v.key
FROM {schema}.all_instances v
WHERE v.id = %(id)s::bigint
UNION ALL
SELECT k.id, k.status, k.queue, k.key
FROM (
    SELECT v.id, v.status, v.queue, v.key
    FROM {schema}.all_instances v
    WHERE v.key = %(key)s::text
    ORDER BY (v.finished_at IS NULL) DESC, v.id DESC
    LIMIT 1
) k
