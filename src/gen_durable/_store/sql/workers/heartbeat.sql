-- A worker says that it lives. No row in the answer: it was declared dead and must register anew.
--
-- Parameters: worker; locked, whether its session lock is held; lanes, the lanes it knows now (int[]).
-- Locks: its own row; a reaper that is just declaring it dead commits first.
-- Index: primary key. No indexed column changes (HOT).
-- Answer: the highest lane number: a higher one than the worker has seen means that there are lanes to learn of.
UPDATE {schema}.workers
SET seen_at = {clock}, suspect_at = NULL, locked = %(locked)s::boolean, lanes = %(lanes)s::int[]
WHERE id = %(worker)s::int
RETURNING (SELECT max(l.id) FROM {schema}.lanes l)
