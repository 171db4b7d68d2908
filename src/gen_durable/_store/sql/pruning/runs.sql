-- Forgets which occurrences of a schedule were started long ago, a bounded batch of one schedule, and notes the span in which
-- that is not known any more; also what is left of schedules that are gone.
--
-- Parameters: keep (seconds that an occurrence is remembered), batch (rows at most of each kind).
-- Locks: a schedule's row, FOR NO KEY UPDATE SKIP LOCKED, then rows of its occurrences; nobody else touches those of one that is
--   gone but another such pass, which passes by.
-- Index: schedule_runs' primary key, schedule_runs_started; see claim.sql for the form of the conditions.
-- Guard: the schedule's row: no backfill looks between the deletion and the note.
-- Answer: how many rows went.
WITH RECURSIVE picked AS MATERIALIZED (
    SELECT s.id
    FROM {schema}.schedules s
    WHERE EXISTS (
        SELECT 1 FROM {schema}.schedule_runs r
        WHERE r.schedule = s.id AND r.started_at <= {clock} - make_interval(secs => %(keep)s::float8)
    )
    ORDER BY s.id
    LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED
),
old AS (
    DELETE FROM {schema}.schedule_runs d
    WHERE d.ctid = ANY (ARRAY(
        SELECT r.ctid FROM {schema}.schedule_runs r JOIN picked p ON r.schedule = ANY (ARRAY[p.id])
        WHERE r.started_at <= {clock} - make_interval(secs => %(keep)s::float8)
        ORDER BY r.started_at LIMIT %(batch)s::int
    ))
    RETURNING d.schedule, d.occurrence
),
noted AS (
    UPDATE {schema}.schedules s
    SET forgotten = range_merge(coalesce(s.forgotten, o.span), o.span)
    FROM (
        SELECT n.schedule, tstzrange(min(n.occurrence), max(n.occurrence), '[]') AS span FROM old n GROUP BY n.schedule
    ) o
    WHERE s.id = o.schedule
    RETURNING 1
),
remembered AS (  -- the numbers of the schedules that have rows, one probe for each
    SELECT min(r.schedule) AS id FROM {schema}.schedule_runs r
    UNION ALL
    SELECT (SELECT min(r.schedule) FROM {schema}.schedule_runs r WHERE r.schedule > k.id)
    FROM remembered k WHERE k.id IS NOT NULL
),
lost AS MATERIALIZED (
    SELECT k.id FROM remembered k
    WHERE k.id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {schema}.schedules s WHERE s.id = k.id)
    LIMIT 1
),
orphans AS (
    DELETE FROM {schema}.schedule_runs d
    WHERE d.ctid = ANY (ARRAY(
        SELECT r.ctid FROM lost k JOIN {schema}.schedule_runs r ON r.schedule = ANY (ARRAY[k.id])
        LIMIT %(batch)s::int FOR UPDATE OF r SKIP LOCKED
    ))
    RETURNING 1
)
SELECT (SELECT count(*) FROM old) + (SELECT count(*) FROM orphans), (SELECT count(*) FROM noted)
