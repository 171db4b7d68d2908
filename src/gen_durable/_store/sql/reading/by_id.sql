-- One instance, by id.
--
-- Parameters: id.
-- Locks: none.
-- Index: both tables' index on id.
SELECT v.id, v.machine, v.version, v.queue, v.step, v.status, v.priority, v.attempt, v.crashes, v.key, v.state, v.result,
    v.error, v.worker, v.rev, v.due_at, v.inserted_at, v.updated_at, v.finished_at,
    v.awaits, v.children_left, v.parent_id
FROM {schema}.all_instances v
WHERE v.id = %(id)s::bigint
