-- From what a caller gives to a row as insert.sql takes it: what the client does with a machine's class, done with what
-- engines have registered of it.

-- A registered machine; the highest version where none is given.
CREATE OR REPLACE FUNCTION {schema}.machine_of(of_name text, of_version bigint) RETURNS {schema}.machines
LANGUAGE plpgsql STABLE AS $$
DECLARE
    known {schema}.machines;
BEGIN
    PERFORM {schema}.check_name(of_name, 'machine');
    SELECT m.* INTO known FROM {schema}.machines m
    WHERE m.name = of_name AND (of_version IS NULL OR m.version = of_version)
    ORDER BY m.version DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '42704',
            MESSAGE = format('no engine has registered a machine %L%s', of_name, coalesce(' of version ' || of_version, '')),
            DETAIL = format('Registered are %s.', coalesce(
                (SELECT string_agg(m.name || ' ' || m.version, ', ' ORDER BY m.name, m.version) FROM {schema}.machines m),
                'none'
            )),
            HINT = 'Give the name as it is stored, and start an engine that has it in machines= once.';
    END IF;
    RETURN known;
END $$;

-- A queue that somebody has named: a worker, or a machine's class.
CREATE OR REPLACE FUNCTION {schema}.check_queue(of_queue text) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.queues q WHERE q.name = {schema}.check_name(of_queue, 'queue'))
        AND NOT EXISTS (SELECT FROM {schema}.machines m WHERE m.queue = of_queue) THEN
        RAISE EXCEPTION USING ERRCODE = '42704', MESSAGE = format('there is no queue %L', of_queue),
            DETAIL = format('Known are %s.', (
                SELECT string_agg(n.name, ', ' ORDER BY n.name)
                FROM (SELECT q.name FROM {schema}.queues q UNION SELECT m.queue FROM {schema}.machines m) n
            )),
            HINT = 'Name it in queues= of the engine that should run it.';
    END IF;
    RETURN of_queue;
END $$;

-- Gives rows their lanes, and makes those that are missing: as the client does, in one order, all before the first row.
CREATE OR REPLACE FUNCTION {schema}.with_lanes(new_rows jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    missing jsonb;
BEGIN
    SELECT jsonb_agg(jsonb_build_object(
        'queue', w.queue, 'machine', w.machine, 'version', w.version, 'retention', m.retention
    ) ORDER BY w.queue COLLATE "C", w.machine COLLATE "C", w.version)
    INTO missing
    FROM (
        SELECT DISTINCT r ->> 'queue' AS queue, r ->> 'machine' AS machine, (r ->> 'version')::int AS version
        FROM jsonb_array_elements(new_rows) r
    ) w
    JOIN {schema}.machines m ON m.name = w.machine AND m.version = w.version
    WHERE NOT EXISTS (
        SELECT FROM {schema}.lanes l WHERE l.queue = w.queue AND l.machine = w.machine AND l.version = w.version
    );
    IF missing IS NOT NULL THEN
        PERFORM FROM {schema}.run_lanes(lanes => missing::text);
        PERFORM pg_notify('{channel}', 'l:');
    END IF;
    RETURN (
        SELECT coalesce(jsonb_agg(e.item || jsonb_build_object('lane', l.id) ORDER BY e.nr), jsonb_build_array())
        FROM jsonb_array_elements(new_rows) WITH ORDINALITY AS e (item, nr)
        JOIN {schema}.lanes l ON l.queue = e.item ->> 'queue' AND l.machine = e.item ->> 'machine'
            AND l.version = (e.item ->> 'version')::int
    );
END $$;

-- The state, when it has the machine's fields; what their types take beyond JSON's own is found when a worker decodes it.
CREATE OR REPLACE FUNCTION {schema}.check_state(machine {schema}.machines, state jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
    wrong record;
BEGIN
    IF jsonb_typeof(state) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('the state of %s is %s', machine.name, coalesce(left(state::text, 80), 'null')),
            HINT = 'Give a JSON object with its fields.';
    ELSIF octet_length(state::text) > machine.max_bytes THEN
        RAISE EXCEPTION USING ERRCODE = '54000', MESSAGE = format('the state of %s has %s bytes, more than %s',
                machine.name, octet_length(state::text), machine.max_bytes),
            HINT = 'Keep large data elsewhere and refer to it, or raise max_state_bytes of the engine.';
    END IF;
    SELECT coalesce(s.key, f.key) AS name, f.key IS NULL AS unknown, s.key IS NULL AS missing, f.value -> 'json' AS takes,
        s.value
    INTO wrong
    FROM jsonb_each(machine.fields) f
    FULL JOIN jsonb_each(state) s ON s.key = f.key
    WHERE f.key IS NULL OR (s.key IS NULL AND (f.value -> 'required')::boolean)
        OR (s.key IS NOT NULL AND jsonb_typeof(f.value -> 'json') = 'array' AND NOT (f.value -> 'json') ? jsonb_typeof(s.value))
    ORDER BY 1 LIMIT 1;
    IF wrong.unknown THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('%s has no field %L', machine.name, wrong.name),
            HINT = format('Its fields are: %s.', coalesce(
                (SELECT string_agg(k, ', ' ORDER BY k) FROM jsonb_object_keys(machine.fields) k), 'none'
            ));
    ELSIF wrong.missing THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('the field %L of %s is missing, and has no default', wrong.name, machine.name),
            HINT = 'Give it in the state.';
    ELSIF wrong.name IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('the field %L of %s is %s', wrong.name, machine.name, left(wrong.value::text, 80)),
            HINT = format('It is stored as %s.', (SELECT string_agg(t, ' or ') FROM jsonb_array_elements_text(wrong.takes) t));
    END IF;
    RETURN state;
END $$;

-- What a limit comes to: what was given ('' is none), else what the class says.
CREATE OR REPLACE FUNCTION {schema}.said(given text, declared jsonb, machine text, argument text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF given IS NULL AND (declared -> 'computed')::boolean THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('%s computes its %s with a function of Python''s, which can''t be called here', machine, argument),
            HINT = format('Give %s: what that function would answer%s.', argument,
                CASE WHEN argument = 'weight' THEN '' ELSE ', or an empty text for none' END);
    END IF;
    RETURN coalesce(nullif(given, ''), CASE WHEN given IS NULL THEN declared ->> 'value' END);
END $$;

-- What the row's first step is held to: {own_gate, gate, rate, weight}.
CREATE OR REPLACE FUNCTION {schema}.limits_of(machine {schema}.machines, item jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
    has jsonb := machine.limits;
    own text;
    gate text;
    rate text;
    tokens bigint;
    most double precision;
BEGIN
    own := {schema}.said({schema}.check_line('c', item ->> 'concurrency_key', item ->> 'concurrency_partition',
        'concurrency_key'), has -> 'own', machine.name, 'concurrency_key');
    IF (has #> '{gate,computed}')::boolean THEN
        RAISE EXCEPTION USING ERRCODE = '0A000',
            MESSAGE = format('the first step of %s, %s, computes its own concurrency_key with a function of Python''s',
                machine.name, machine.step),
            HINT = 'Declare the key on the class instead, begin with a step without one, or insert from Python.';
    END IF;
    gate := CASE WHEN has ? 'gate' THEN has #>> '{gate,value}' ELSE own END;
    rate := {schema}.said({schema}.check_line('r', item ->> 'rate_limit', item ->> 'rate_partition', 'rate_limit'),
        has -> 'rate', machine.name, 'rate_limit');
    tokens := {schema}.check_int(item, 'weight', 1, 2147483647);
    IF rate IS NULL THEN
        IF tokens IS NOT NULL AND NOT item ? 'rate_limit' THEN
            RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('weight is %s, without a rate limit', tokens),
                HINT = 'Give rate_limit too.';
        END IF;
        RETURN jsonb_build_object('own_gate', own, 'gate', gate);
    END IF;
    tokens := {schema}.said(tokens::text, has -> 'weight', machine.name, 'weight');
    SELECT c.burst INTO most FROM {schema}.limits c WHERE c.kind = 'rate' AND c.name = {schema}.limit_of(rate);
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '42704', MESSAGE = format('there is no rate limit %L', {schema}.limit_of(rate)),
            HINT = 'Name it in rate_limits= of the engine.';
    ELSIF tokens > most THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('weight is %s, more than the burst of the rate limit %L, %s',
                tokens, {schema}.limit_of(rate), most),
            HINT = 'Use a smaller weight or a larger burst.';
    END IF;
    RETURN jsonb_build_object('own_gate', own, 'gate', gate, 'rate', rate, 'weight', nullif(tokens, 1));
END $$;

-- One row for insert.sql, but for its lane, from one item: an object with the names of insert_instance's arguments.
CREATE OR REPLACE FUNCTION {schema}.new_row(given jsonb) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    wrong record;
    item jsonb;
    machine {schema}.machines;
BEGIN
    IF jsonb_typeof(given) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('an item is %s', coalesce(left(given::text, 80), 'null')),
            HINT = 'Give a JSON object with machine, state and more.';
    END IF;
    SELECT g.key, g.value, t.takes INTO wrong
    FROM jsonb_each(given) g
    LEFT JOIN (VALUES
        ('machine', 'string'), ('state', 'any'), ('key', 'string'), ('queue', 'string'), ('version', 'number'),
        ('priority', 'number'), ('delay', 'number or string'), ('at', 'string'), ('scope', 'array'),
        ('concurrency_key', 'string'), ('concurrency_partition', 'string'), ('rate_limit', 'string'),
        ('rate_partition', 'string'), ('weight', 'number')
    ) AS t (name, takes) ON t.name = g.key
    WHERE t.name IS NULL
        OR (t.takes <> 'any' AND jsonb_typeof(g.value) <> 'null' AND strpos(t.takes, jsonb_typeof(g.value)) = 0)
    ORDER BY g.key LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = CASE
                WHEN wrong.takes IS NULL THEN format('an item has no %L', wrong.key)
                ELSE format('%s is %s', wrong.key, left(wrong.value::text, 80))
            END,
            HINT = coalesce('Give a JSON ' || wrong.takes || '.', 'Items have the names of the arguments of insert_instance.');
    END IF;
    item := jsonb_strip_nulls(given - 'state');
    machine := {schema}.machine_of(item ->> 'machine', {schema}.check_int(item, 'version', 1, 2147483647));
    IF item ?& ARRAY['delay', 'at'] THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('delay %s and at %s were both given', item ->> 'delay', item ->> 'at'),
            HINT = 'Give one of them.';
    END IF;
    RETURN {schema}.limits_of(machine, item) || jsonb_build_object(
        'state', {schema}.check_state(machine, coalesce(given -> 'state', jsonb_build_object())),
        'key', CASE WHEN item ? 'key' THEN {schema}.check_name(item ->> 'key', 'key') END,
        'priority', coalesce({schema}.check_int(item, 'priority', -32768, 32767), machine.priority),
        'delay', {schema}.check_delay(item -> 'delay'),
        'at', {schema}.check_at(item ->> 'at'),
        'scope', {schema}.check_scope(item),
        'step', machine.step,
        'machine', machine.name,
        'version', machine.version,
        'queue', CASE WHEN item ? 'queue' THEN {schema}.check_queue(item ->> 'queue') ELSE machine.queue END
    );
END $$;
