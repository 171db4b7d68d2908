-- The live instances that hold the given keys.
--
-- Parameters: keys, a JSON list of keys.
-- Locks: none.
-- Index: instances_key; an array of one for the same reason as the ranges of one elsewhere (see claim.sql).
SELECT i.key, i.id
FROM jsonb_array_elements_text(%(keys)s::jsonb) AS k
JOIN {schema}.instances i ON i.key = ANY (ARRAY[k])
