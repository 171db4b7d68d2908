-- The rows in which a commit can meet another transaction that holds several rows, by id, before anything else.
-- Part of the committing statements, at their head.
WITH locked AS MATERIALIZED (
    SELECT i.id
    FROM jsonb_array_elements_text(%(first)s::jsonb) AS f
    JOIN {schema}.instances i ON i.id = ANY (ARRAY[f::bigint])
    FOR NO KEY UPDATE OF i
),
