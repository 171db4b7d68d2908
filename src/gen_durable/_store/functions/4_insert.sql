-- Bringing instances into being, for anybody who speaks SQL: a trigger, psql, another language. See the guide "from-sql".

-- Inserts some rows for insert.sql, and answers for each (place from 1): its id, or that of the instance that holds its key.
CREATE OR REPLACE FUNCTION {schema}.insert_rows(new_rows jsonb)
RETURNS TABLE (place int, id bigint, duplicate boolean) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    places int[] := ARRAY(SELECT generate_series(1, jsonb_array_length(new_rows)));
    part jsonb := new_rows;
    taken int[];
    answer record;
BEGIN
    WHILE cardinality(places) > 0 LOOP
        taken := '{}';
        FOR answer IN
            SELECT r.place, r.id FROM {schema}.run_insert(worker => NULL, rows => part::text, soon => 60, notify => true) r
        LOOP
            IF answer.id IS NULL THEN
                taken := taken || places[answer.place];
            ELSE
                place := places[answer.place]; id := answer.id; duplicate := false;
                RETURN NEXT;
            END IF;
        END LOOP;
        EXIT WHEN cardinality(taken) = 0;
        places := '{}';
        FOR answer IN
            SELECT t.place, h.id
            FROM unnest(taken) AS t (place)
            LEFT JOIN {schema}.run_holders(keys => (
                SELECT jsonb_agg(DISTINCT new_rows -> (t.place - 1) -> 'key') FROM unnest(taken) AS t (place)
            )::text) h ON h.key = new_rows -> (t.place - 1) ->> 'key'
            ORDER BY t.place
        LOOP
            IF answer.id IS NULL THEN  -- the holder ended in between: the key is free again
                places := places || answer.place;
            ELSE
                place := answer.place; id := answer.id; duplicate := true;
                RETURN NEXT;
            END IF;
        END LOOP;
        part := (SELECT jsonb_agg(new_rows -> (p.place - 1) ORDER BY p.nr)
            FROM unnest(places) WITH ORDINALITY AS p (place, nr));
    END LOOP;
END $$;

-- The error of a taken key.
CREATE OR REPLACE FUNCTION {schema}.refuse_duplicate(key text, holder bigint) RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '23505', MESSAGE = format('the key %L is taken', key),
        DETAIL = format('Instance %s holds it.', holder), SCHEMA = '{schema}', TABLE = 'instances',
        CONSTRAINT = 'instances_key',
        HINT = 'Take another key, or say what is to become of it: on_conflict => ''existing''.';
END $$;

CREATE OR REPLACE FUNCTION {schema}.insert_instance(
    machine text, state jsonb DEFAULT '{}', key text DEFAULT NULL, queue text DEFAULT NULL, version int DEFAULT NULL,
    priority int DEFAULT NULL, delay interval DEFAULT NULL, at timestamptz DEFAULT NULL, scope text[] DEFAULT NULL,
    on_conflict text DEFAULT 'raise', concurrency_key text DEFAULT NULL, concurrency_partition text DEFAULT NULL,
    rate_limit text DEFAULT NULL, rate_partition text DEFAULT NULL, weight int DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql VOLATILE {session} AS $$
#variable_conflict use_variable
DECLARE
    new jsonb;
    holder bigint;
    done record;
BEGIN
    IF on_conflict IS NULL OR on_conflict NOT IN ('raise', 'existing', 'replace') THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('on_conflict is %L', on_conflict),
            HINT = 'Use raise, existing or replace.';
    END IF;
    new := {schema}.with_lanes(jsonb_build_array({schema}.new_row(jsonb_build_object(
        'machine', machine, 'state', state, 'key', key, 'queue', queue, 'version', version, 'priority', priority,
        'delay', delay::text, 'at', at, 'scope', scope, 'concurrency_key', concurrency_key,
        'concurrency_partition', concurrency_partition, 'rate_limit', rate_limit, 'rate_partition', rate_partition,
        'weight', weight
    ))));
    IF on_conflict = 'replace' AND (key IS NULL OR (new #> '{0,scope}')::text = '0') THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'on_conflict is ''replace'', without a key that has a scope',
            HINT = 'Give a key: what would it replace?';
    END IF;
    LOOP
        IF on_conflict = 'replace' THEN
            SELECT r.id INTO done FROM {schema}.run_replace(
                "row" => new::text, key => key, soon => 60, notify => true
            ) r;
            IF FOUND THEN
                RETURN done.id;
            END IF;
        END IF;
        SELECT r.id, r.duplicate INTO done FROM {schema}.insert_rows(new) r;
        IF NOT done.duplicate OR on_conflict = 'existing' THEN
            RETURN done.id;
        END IF;
        -- One that came only after the look for what can be replaced is looked at too.
        IF on_conflict = 'raise' OR done.id IS NOT DISTINCT FROM holder THEN
            PERFORM {schema}.refuse_duplicate(key, done.id);
        END IF;
        holder := done.id;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION {schema}.insert_instances(rows jsonb)
RETURNS TABLE (place int, id bigint, duplicate boolean) LANGUAGE plpgsql VOLATILE {session} AS $$
#variable_conflict use_column
DECLARE
    item record;
    new jsonb[] := '{}';
    said text;
    detail text;
    hint text;
    code text;
BEGIN
    IF jsonb_typeof(rows) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('rows is %s', coalesce(left(rows::text, 80), 'null')),
            HINT = 'Give a JSON list of objects.';
    END IF;
    BEGIN
        FOR item IN SELECT e.value, e.nr FROM jsonb_array_elements(rows) WITH ORDINALITY AS e (value, nr) LOOP
            new := new || {schema}.new_row(item.value);
        END LOOP;
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS said = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT,
            code = RETURNED_SQLSTATE;
        RAISE EXCEPTION USING ERRCODE = code, MESSAGE = said,
            DETAIL = concat_ws(' ', format('It is item %s.', item.nr), nullif(detail, '')),
            HINT = coalesce(nullif(hint, ''), 'Mend that item: nothing was inserted.');
    END;
    RETURN QUERY SELECT r.place, r.id, r.duplicate FROM {schema}.insert_rows({schema}.with_lanes(to_jsonb(new))) r ORDER BY r.place;
END $$;
