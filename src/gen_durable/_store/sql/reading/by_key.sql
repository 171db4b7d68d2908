-- One instance, by key: the live one, else the one that ended last.
--
-- Parameters: key.
-- Locks: none.
-- Index: instances_key, finished_key.
SELECT v.id, v.machine, v.version, v.queue, v.step, v.status, v.priority, v.attempt, v.crashes, v.key, v.state, v.result,
    v.error, v.worker, v.rev, v.due_at, v.inserted_at, v.updated_at, v.finished_at,
    v.awaits, v.children_left, v.parent_id
FROM {schema}.all_instances v
WHERE v.key = %(key)s::text
ORDER BY (v.finished_at IS NULL) DESC, v.id DESC
LIMIT 1
