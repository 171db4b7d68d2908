-- A page of instances, newest first, by keyset.
--
-- Parameters: machine, queue, key_prefix (null: any), statuses (smallint[], null: any), before (id, null: from the newest),
--   limit.
-- Locks: none.
-- Index: both tables' index on id, read backwards; filters are applied on the way.
SELECT v.id, v.machine, v.version, v.queue, v.step, v.status, v.priority, v.attempt, v.crashes, v.key, v.state, v.result,
    v.error, v.worker, v.rev, v.due_at, v.inserted_at, v.updated_at, v.finished_at
FROM {schema}.all_instances v
WHERE v.id < coalesce(%(before)s::bigint, 9223372036854775807)  -- not "IS NULL OR": the index must end the walk
    AND (%(machine)s::text IS NULL OR v.machine = %(machine)s::text)
    AND (%(queue)s::text IS NULL OR v.queue = %(queue)s::text)
    AND (%(statuses)s::smallint[] IS NULL OR v.status = ANY (%(statuses)s::smallint[]))
    AND (%(key_prefix)s::text IS NULL OR starts_with(v.key, %(key_prefix)s::text))
ORDER BY v.id DESC
LIMIT %(limit)s::int
