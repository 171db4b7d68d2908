-- Pauses a schedule; one that is paused stays paused since when it was.
--
-- Parameters: name.
-- Locks: its row; it waits for whoever has it.
-- Index: schedules' unique constraint on name.
-- Answer: a row, when there is such a schedule.
UPDATE {schema}.schedules s
SET paused_at = coalesce(s.paused_at, {clock})
WHERE s.name = %(name)s::text
RETURNING s.id
