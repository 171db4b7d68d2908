-- Moves the clock of a schema for tests, and wakes every worker of it.
--
-- Parameters: seconds, to move it by; until (timestamptz, or null), to move it to where that is later.
-- Locks: the one row of test_clock.
-- Index: none needed.
-- Guard: an update of the row as it is: of two that move it to the same moment one does. It never goes back.
-- Answer: the clock then. There is such a clock only in a schema that was made with it.
WITH moved AS (
    UPDATE {schema}.test_clock c
    SET ahead = greatest(
        c.ahead + make_interval(secs => %(seconds)s::float8),
        make_interval(secs => extract(epoch FROM %(until)s::timestamptz - {wall})::float8)
    )
    RETURNING {wall} + c.ahead AS clock
)
SELECT m.clock, pg_notify('{channel}', '*')::text FROM moved m
