-- Keeps a schedule as it is until the end of the transaction.
--
-- Parameters: name.
-- Locks: the schedule's row, FOR NO KEY UPDATE; it waits for whoever has it.
-- Index: schedules' unique constraint on name.
-- Answer: a row, when there is such a schedule.
SELECT s.id FROM {schema}.schedules s WHERE s.name = %(name)s::text FOR NO KEY UPDATE
