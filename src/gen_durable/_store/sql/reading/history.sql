-- The transitions of one instance, oldest first.
--
-- Parameters: id.
-- Locks: none.
-- Index: transitions_instance and finished_id of each partition.
SELECT t.seq, t.step, t.attempt, t.outcome, t.took, t.at, t.worker, t.error, t.state
FROM {schema}.transitions t
WHERE t.instance_id = %(id)s::bigint
UNION ALL
SELECT t.seq, t.step, t.attempt, t.outcome, t.took, t.at, t.worker, t.error, t.state
FROM {schema}.transitions_kept t
WHERE t.instance_id = %(id)s::bigint
UNION ALL
-- The end, where the terminal row speaks for it; outcomes 3 to 5 are the statuses 6 to 8.
SELECT f.rev, f.step, f.attempt, (f.status - 3)::smallint, f.took, f.finished_at, f.worker, f.error, NULL
FROM {schema}.finished f
WHERE f.id = %(id)s::bigint AND f.took IS NOT NULL
ORDER BY 1
