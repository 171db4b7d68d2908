-- A worker says that it lives. No row in the answer: it was declared dead and must register anew.
--
-- Parameters: worker; locked, whether its session lock is held; lanes, the lanes it knows now (int[]).
-- Locks: its own row; a reaper that is just declaring it dead commits first.
-- Index: primary key. No indexed column changes (HOT).
-- Answer: a mark of the lanes: another one than the worker has seen means that lanes were made, paused or
--   resumed, or that a queue's cap came or went (as in known.sql).
UPDATE {schema}.workers
SET seen_at = {wall}, suspect_at = NULL, locked = %(locked)s::boolean, lanes = %(lanes)s::int[]
WHERE id = %(worker)s::int
RETURNING (
    SELECT concat_ws(':', max(a.id), sum(hashint4(a.id)::bigint) FILTER (WHERE a.paused),
        sum(hashint4(a.id)::bigint) FILTER (WHERE {schema}.is_capped(a.queue)))
    FROM {schema}.lanes a
)
