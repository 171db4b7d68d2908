-- The schedules whose turn is next, those that are due first.
--
-- Parameters: batch (rows at most).
-- Locks: none.
-- Index: schedules_due.
-- Answer: the schedule; the clock; the seconds until it is due, negative when its time has come.
SELECT s.id, s.rev, s.name, s.cron, s.every, s.tz, s.catch_up, s.anchor, s.next_at, {clock},
    extract(epoch FROM s.next_at - {clock})::float8
FROM {schema}.schedules s
WHERE s.paused_at IS NULL AND s.next_at IS NOT NULL
ORDER BY s.next_at
LIMIT %(batch)s::int
