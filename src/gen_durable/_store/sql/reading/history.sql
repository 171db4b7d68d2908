-- The transitions of one instance, oldest first.
--
-- Parameters: id.
-- Locks: none.
-- Index: transitions_instance of each partition.
SELECT t.seq, t.step, t.attempt, t.outcome, t.took, t.at, t.worker, t.error, t.state
FROM {schema}.transitions t
WHERE t.instance_id = %(id)s::bigint
UNION ALL
SELECT t.seq, t.step, t.attempt, t.outcome, t.took, t.at, t.worker, t.error, t.state
FROM {schema}.transitions_kept t
WHERE t.instance_id = %(id)s::bigint
ORDER BY 1
