-- The instances that hold the given keys: live ones, and ended ones whose key is reserved.
--
-- Parameters: keys, a JSON list of keys.
-- Locks: none.
-- Index: instances_key; see claim.sql for the form of the condition.
-- Answer: key, id, status: 9 for a reservation.
SELECT i.key, i.id, i.status
FROM jsonb_array_elements_text(%(keys)s::jsonb) AS k
JOIN {schema}.instances i ON i.key = ANY (ARRAY[k]) AND i.scope IS DISTINCT FROM 0
