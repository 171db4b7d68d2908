-- Whether a limit has ever been lowered: then a slot that is freed may be one too many, and is not handed on uncounted.
ALTER TABLE {schema}.limits ADD COLUMN lowered boolean NOT NULL DEFAULT true;
ALTER TABLE {schema}.limits ALTER COLUMN lowered SET DEFAULT false;

-- Keeps a key taken after its instance's end: a row of status 9, until the terminal row expires (keep: seconds; null: never).
CREATE FUNCTION {schema}.reserve_key(
    of_instance bigint, at timestamptz, keep double precision, inserted_at timestamptz, lane int, step text, key text,
    scope smallint
) RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO {schema}.instances (id, due_at, inserted_at, updated_at, lane, status, step, key, scope, state)
    VALUES (
        of_instance, coalesce(at + make_interval(secs => keep), 'infinity'), inserted_at, at, lane, 9, step, key, scope,
        jsonb_build_object()
    )
$$;
