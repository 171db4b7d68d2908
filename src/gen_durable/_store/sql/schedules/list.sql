-- All schedules, by name.
--
-- Locks: none.
-- Index: none needed; one row for each schedule.
SELECT s.name, s.cron, s.every, s.tz, s.catch_up, l.machine, l.version, l.queue, s.priority, s.state, s.time_field, s.paused_at,
    CASE WHEN s.paused_at IS NULL THEN s.next_at END, s.last_at, s.created_at, s.updated_at
FROM {schema}.schedules s
JOIN {schema}.lanes l ON l.id = s.lane
ORDER BY s.name
