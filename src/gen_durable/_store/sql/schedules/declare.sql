-- Makes a schedule, or changes it to what is given; one that is so already stays untouched, with its next occurrence and its
-- pause.
--
-- Parameters: name, cron, every, tz, catch_up, lane, priority, step, state, time_field, gate, own_gate,
--   rate, weight (its definition); next_at (its first
--   occurrence, where its times are new); made_at (the clock as it was when that was computed); paused (whether a new one is).
-- Locks: its row; it waits for whoever has it.
-- Index: schedules' unique constraint on name.
-- Guard: the unique constraint; ON CONFLICT compares with the row as the one before has left it.
-- Answer: a row, when something is new; workers are told.
WITH made AS (
    INSERT INTO {schema}.schedules AS s (
        name, cron, every, tz, catch_up, anchor, next_at, paused_at, lane, priority, step, state, time_field, gate,
        own_gate, rate, weight, created_at, updated_at
    )
    VALUES (
        %(name)s::text, %(cron)s::text, %(every)s::float8, %(tz)s::text, %(catch_up)s::text, %(made_at)s::timestamptz,
        %(next_at)s::timestamptz, CASE WHEN %(paused)s::boolean THEN {clock} END, %(lane)s::int, %(priority)s::smallint,
        %(step)s::text, %(state)s::jsonb, %(time_field)s::text, %(gate)s::text, %(own_gate)s::text, %(rate)s::text,
        %(weight)s::int, {clock}, {clock}
    )
    ON CONFLICT (name) DO UPDATE
    SET rev = s.rev + 1, cron = EXCLUDED.cron, every = EXCLUDED.every, tz = EXCLUDED.tz, catch_up = EXCLUDED.catch_up,
        lane = EXCLUDED.lane, priority = EXCLUDED.priority, step = EXCLUDED.step, state = EXCLUDED.state,
        time_field = EXCLUDED.time_field, gate = EXCLUDED.gate, own_gate = EXCLUDED.own_gate, rate = EXCLUDED.rate,
        weight = EXCLUDED.weight,
        anchor = CASE
            WHEN (s.cron, s.every, s.tz) IS DISTINCT FROM (EXCLUDED.cron, EXCLUDED.every, EXCLUDED.tz)
            THEN EXCLUDED.anchor ELSE s.anchor
        END,
        next_at = CASE
            WHEN (s.cron, s.every, s.tz) IS DISTINCT FROM (EXCLUDED.cron, EXCLUDED.every, EXCLUDED.tz)
            THEN EXCLUDED.next_at ELSE s.next_at
        END,
        updated_at = {clock}
    WHERE (
        s.cron, s.every, s.tz, s.catch_up, s.lane, s.priority, s.step, s.state, s.time_field, s.gate, s.own_gate, s.rate,
        s.weight
    ) IS DISTINCT FROM (
        EXCLUDED.cron, EXCLUDED.every, EXCLUDED.tz, EXCLUDED.catch_up, EXCLUDED.lane, EXCLUDED.priority, EXCLUDED.step,
        EXCLUDED.state, EXCLUDED.time_field, EXCLUDED.gate, EXCLUDED.own_gate, EXCLUDED.rate, EXCLUDED.weight
    )
    RETURNING s.id
)
SELECT m.id, pg_notify('{channel}', 's:') FROM made m
