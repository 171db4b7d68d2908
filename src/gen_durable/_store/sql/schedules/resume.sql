-- Lets a paused schedule go on with its next occurrence; workers are told.
--
-- Parameters: id; rev (what the time was computed from); next_at.
-- Locks: its row; the caller holds it.
-- Index: schedules' primary key.
-- Guard: one that is not paused stays as it is: it may be behind, and is to catch up.
WITH gone_on AS (
    UPDATE {schema}.schedules s SET paused_at = NULL, next_at = %(next_at)s::timestamptz
    WHERE s.id = %(id)s::int AND s.rev = %(rev)s::int AND s.paused_at IS NOT NULL
    RETURNING s.id
)
SELECT g.id, pg_notify('{channel}', 's:') FROM gone_on g
