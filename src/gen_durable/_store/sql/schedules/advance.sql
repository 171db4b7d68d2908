-- Moves schedules on to their next occurrences, before what has come is started in the same transaction.
--
-- Parameters: turns, a JSON list of {id, rev and from_at: the schedule as it was when the times were computed; next_at, null for
--   never again; last_at: the latest occurrence that is started now, null for none}.
-- Locks: the schedules' rows, FOR NO KEY UPDATE SKIP LOCKED: until the end of the transaction nobody else starts their
--   occurrences, and a worker, whose services share one connection, waits for nobody.
-- Index: schedules' primary key; see claim.sql for the form of the condition.
-- Guard: rev and next_at as they were, not paused: of all workers that compute the same step one takes it.
-- Answer: what the occurrences start; a schedule is missing that somebody else has moved on, or is about to.
WITH mine AS MATERIALIZED (
    SELECT s.id, g.next_at, g.last_at
    FROM jsonb_to_recordset(%(turns)s::jsonb)
        AS g (id int, rev int, from_at timestamptz, next_at timestamptz, last_at timestamptz)
    JOIN {schema}.schedules s ON s.id = ANY (ARRAY[g.id])
    WHERE s.rev = g.rev AND s.next_at = g.from_at AND s.paused_at IS NULL
    FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE {schema}.schedules s
SET next_at = m.next_at, last_at = coalesce(m.last_at, s.last_at)
FROM mine m
WHERE s.id = ANY (ARRAY[m.id])
RETURNING s.id, s.lane, s.step, s.state, s.priority, s.time_field, s.gate, s.own_gate, s.rate, s.weight
