-- What the public functions take, checked as the client checks it. Errors have the SQLSTATEs of the guide "from-sql".

-- A name that can be stored.
CREATE OR REPLACE FUNCTION {schema}.check_name(value text, what text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22004', MESSAGE = format('%s is null', what), HINT = format('Give %s.', what);
    ELSIF value = '' OR octet_length(value) > 512 THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('%s %L has %s bytes', what, left(value, 80), octet_length(value)),
            HINT = 'Give 1 to 512 bytes.';
    END IF;
    RETURN value;
END $$;

-- A whole number out of an item, or null where it has none.
CREATE OR REPLACE FUNCTION {schema}.check_int(item jsonb, what text, lowest bigint, highest bigint) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    value numeric := (item ->> what)::numeric;
BEGIN
    IF value <> trunc(value) OR value < lowest OR value > highest THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('%s is %s', what, value),
            HINT = format('Give a whole number from %s to %s.', lowest, highest);
    END IF;
    RETURN value::bigint;
END $$;

-- The line of a limit's name and partition, as the client writes it; null without a name, and '' is no limit.
CREATE OR REPLACE FUNCTION {schema}.check_line(kind text, name text, part text, what text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF name IS NULL OR name = '' THEN
        IF part IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('%s has the partition %L and no name', what, part),
                HINT = format('Give %s too.', what);
        END IF;
        RETURN name;
    END IF;
    PERFORM {schema}.check_name(name, what);
    IF part IS NOT NULL THEN
        PERFORM {schema}.check_name(part, format('the partition of %s', what));
        PERFORM {schema}.check_name(name || E'\x1f' || part, format('%s with its partition', what));
    END IF;
    IF strpos(name || coalesce(part, ''), E'\x1f') > 0 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('%s has the character \x1f', what),
            HINT = 'It separates names from partitions: remove it.';
    END IF;
    RETURN kind || name || coalesce(E'\x1f' || part, '');
END $$;

-- A time that is certain: with its offset, and within what can be read back.
CREATE OR REPLACE FUNCTION {schema}.check_at(value text) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF value !~ '\d([Zz]|[+-]\d\d(:?\d\d)?(:\d\d)?)$' THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('at %L has no offset from UTC, or is no time', value),
            HINT = 'Write it like 2030-01-31T09:00:00+00:00.';
    ELSIF value::timestamptz NOT BETWEEN '1900-01-01 00:00+00' AND '9000-12-31 00:00+00' THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('at %L is out of range', value),
            HINT = 'Give a time in the years 1900 to 9000.';
    END IF;
    RETURN value::timestamptz;
END $$;

-- Seconds: a number, or text that Postgres takes for an interval.
CREATE OR REPLACE FUNCTION {schema}.check_delay(value jsonb) RETURNS double precision LANGUAGE plpgsql STABLE AS $$
DECLARE
    seconds double precision;
BEGIN
    IF jsonb_typeof(value) = 'number' THEN
        seconds := value::double precision;
    ELSE
        seconds := extract(epoch FROM statement_timestamp() + (value #>> '{}')::interval - statement_timestamp());
    END IF;
    IF seconds NOT BETWEEN 0 AND 3155760000 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('delay is %s', value #>> '{}'),
            HINT = 'Give an interval, or a number of seconds, of at least 0 and at most 100 years.';
    END IF;
    RETURN seconds;
END $$;

-- A key's scope as a number: null is the live statuses, 0 no status, else a bit for each terminal one besides.
CREATE OR REPLACE FUNCTION {schema}.check_scope(item jsonb) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    labels text[];
    unknown text;
BEGIN
    IF NOT item ? 'scope' THEN
        RETURN NULL;
    ELSIF NOT item ? 'key' THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('scope %s was given without a key', item ->> 'scope'),
            HINT = 'A scope is what a key is held in: give key too.';
    END IF;
    labels := ARRAY(SELECT jsonb_array_elements_text(item -> 'scope'));
    SELECT l INTO unknown FROM unnest(labels) l WHERE l IS NULL OR l NOT IN ('live', 'done', 'failed', 'cancelled');
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('scope has %L', unknown),
            HINT = 'Use live, done, failed and cancelled, or an empty list.';
    ELSIF cardinality(labels) > 0 AND 'live' <> ALL (labels) THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('scope is %s', labels),
            HINT = 'A key is held while its instance is live, or not at all: add live, or give an empty list.';
    END IF;
    RETURN CASE WHEN cardinality(labels) = 0 THEN 0 ELSE nullif(
        CASE WHEN 'done' = ANY (labels) THEN 64 ELSE 0 END + CASE WHEN 'failed' = ANY (labels) THEN 128 ELSE 0 END
        + CASE WHEN 'cancelled' = ANY (labels) THEN 256 ELSE 0 END, 0
    ) END;
END $$;

-- A signal's payload as the text that is stored.
CREATE OR REPLACE FUNCTION {schema}.check_payload(payload jsonb, signal text) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
    most int := coalesce((SELECT max(m.max_bytes) FROM {schema}.machines m), 1048576);
BEGIN
    IF octet_length(payload::text) > most THEN
        RAISE EXCEPTION USING ERRCODE = '54000',
            MESSAGE = format('the payload of the signal %L has %s bytes, more than %s', signal, octet_length(payload::text), most),
            HINT = 'Store it elsewhere and send a reference, or raise max_state_bytes of the engine.';
    END IF;
    RETURN payload::text;
END $$;
