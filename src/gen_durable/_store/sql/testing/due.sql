-- When the next scheduled row of some lanes is due, or a line in which rows of them wait is to be looked at: to bring the
-- clock forward to it.
--
-- Parameters: lanes (int[]).
-- Locks: none.
-- Index: instances_timers, from its beginning; deadlines of what is parked, and rows of other lanes and of paused ones, are
--   passed by. lines_wake, instances_line.
SELECT least(
    (
        SELECT i.due_at
        FROM {schema}.instances i
        JOIN {schema}.lanes l ON l.id = i.lane AND NOT l.paused
        WHERE i.status = 1 AND i.due_at < 'infinity' AND i.lane = ANY (%(lanes)s::int[])
        ORDER BY i.due_at
        LIMIT 1
    ),
    (
        SELECT w.wake_at
        FROM {schema}.lines w
        WHERE w.wake_at IS NOT NULL AND EXISTS (
            SELECT FROM {schema}.instances i
            JOIN {schema}.lanes l ON l.id = i.lane AND NOT l.paused
            WHERE i.line = w.line AND i.status = 5 AND i.lane = ANY (%(lanes)s::int[])
        )
        ORDER BY w.wake_at
        LIMIT 1
    )
)
