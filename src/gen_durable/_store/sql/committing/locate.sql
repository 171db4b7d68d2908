-- Where rows are now (not their reservations of keys): to resolve a commit whose answer never came.
--
-- Parameters: ids, a JSON list of ids.
-- Locks: none.
-- Index: the primary key, finished_id; see claim.sql for the form of the condition.
SELECT i.id, i.rev, i.status, i.worker
FROM jsonb_array_elements_text(%(ids)s::jsonb) AS t
JOIN {schema}.instances i ON i.id = ANY (ARRAY[t::bigint]) AND i.status < 9
UNION ALL
SELECT f.id, f.rev, f.status, f.worker
FROM jsonb_array_elements_text(%(ids)s::jsonb) AS t
JOIN {schema}.finished f ON f.id = ANY (ARRAY[t::bigint])
