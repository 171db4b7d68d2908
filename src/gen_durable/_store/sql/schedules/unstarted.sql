-- Which of some occurrences were not started yet.
--
-- Parameters: schedules (int[]), occurrences (timestamptz[]): each one's schedule and time.
-- Locks: none; the caller holds the schedules' rows, as everybody does who starts an occurrence. It is a statement of its own
--   because only one that begins under that lock sees what the one before has started.
-- Index: schedule_runs' primary key.
-- Answer: their places in the list, from 1.
SELECT g.place
FROM unnest(%(schedules)s::int[], %(occurrences)s::timestamptz[]) WITH ORDINALITY AS g (schedule, occurrence, place)
WHERE NOT EXISTS (
    SELECT 1 FROM {schema}.schedule_runs r WHERE r.schedule = g.schedule AND r.occurrence = g.occurrence
)
ORDER BY g.place
