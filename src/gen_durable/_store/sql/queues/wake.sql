-- Wakes workers: "q:<queue>" for due work in a queue, "t:" for timers, "l:" for new lanes, "s:" for schedules,
-- "m:<kind>:<name>" for a limit that has changed.
--
-- Parameters: messages, text[].
-- Locks: none of ours.
SELECT pg_notify('{channel}', m) FROM unnest(%(messages)s::text[]) AS m
