-- When the next scheduled row of some lanes is due: to bring the clock forward to it.
--
-- Parameters: lanes (int[]).
-- Locks: none.
-- Index: instances_timers, from its beginning; deadlines of what is parked, and rows of other lanes and of paused ones, are
--   passed by.
SELECT i.due_at
FROM {schema}.instances i
JOIN {schema}.lanes l ON l.id = i.lane AND NOT l.paused
WHERE i.status = 1 AND i.due_at < 'infinity' AND i.lane = ANY (%(lanes)s::int[])
ORDER BY i.due_at
LIMIT 1
