-- Remembers which occurrences are started in this transaction, and as what.
--
-- Parameters: schedules (int[]), occurrences (timestamptz[]), instances (bigint[]): each one's schedule, time and instance.
-- Locks: the new rows; the caller holds the schedules' rows.
-- Index: schedule_runs' primary key.
-- Guard: the primary key: should an occurrence be there already, the whole transaction is undone.
INSERT INTO {schema}.schedule_runs (schedule, occurrence, instance_id, started_at)
SELECT r.schedule, r.occurrence, r.instance_id, {clock}
FROM unnest(%(schedules)s::int[], %(occurrences)s::timestamptz[], %(instances)s::bigint[])
    AS r (schedule, occurrence, instance_id)
