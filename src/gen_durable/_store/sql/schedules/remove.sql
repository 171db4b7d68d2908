-- Removes a schedule; what is remembered of its occurrences goes with pruning/runs.
--
-- Parameters: name.
-- Locks: its row; it waits for whoever has it.
-- Index: schedules' unique constraint on name.
-- Answer: a row, when there was such a schedule.
DELETE FROM {schema}.schedules s WHERE s.name = %(name)s::text RETURNING s.id
