-- Schedules: what is started at which times, and what was started.

CREATE TABLE {schema}.schedules (
    id         int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text        NOT NULL UNIQUE,
    rev        int         NOT NULL DEFAULT 0,  -- grows when the definition changes: times computed from an older one don't count
    cron       text,
    every      double precision,                -- seconds
    tz         text        NOT NULL,
    catch_up   text        NOT NULL,
    anchor     timestamptz NOT NULL,            -- where the interval counts from
    next_at    timestamptz,                     -- null: never again
    last_at    timestamptz,                     -- the latest occurrence that was started in its turn
    paused_at  timestamptz,
    lane       int         NOT NULL,
    priority   smallint    NOT NULL,
    step       text        NOT NULL,
    state      jsonb       NOT NULL,
    time_field text,                            -- the state's field that gets the occurrence's time
    forgotten  tstzrange,                       -- within it, schedule_runs no longer knows what was started
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT schedules_times CHECK ((cron IS NULL) <> (every IS NULL))
) WITH (fillfactor = 50);

CREATE INDEX schedules_due ON {schema}.schedules (next_at) WHERE paused_at IS NULL;

-- Which occurrences were started, in their turn or by a backfill: nothing starts one a second time.
CREATE TABLE {schema}.schedule_runs (
    schedule    int         NOT NULL,
    occurrence  timestamptz NOT NULL,
    instance_id bigint      NOT NULL,
    started_at  timestamptz NOT NULL,
    PRIMARY KEY (schedule, occurrence)
);

CREATE INDEX schedule_runs_started ON {schema}.schedule_runs (schedule, started_at);
