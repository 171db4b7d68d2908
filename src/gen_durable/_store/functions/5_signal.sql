-- Signals, for anybody who speaks SQL.

-- Delivers: to an id or to a key (the other null). Null: there is no such live instance.
CREATE OR REPLACE FUNCTION {schema}.send_signal(
    of_id bigint, of_key text, name text, payload text, dedup_key text, notify boolean
) RETURNS TABLE (instance bigint, fresh boolean) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    FOR tries IN 1..2 LOOP
        RETURN QUERY SELECT s.target, s.fresh FROM {schema}.run_send(
            name => send_signal.name, id => of_id, key => of_key, payload => send_signal.payload, dedup => dedup_key,
            worker => NULL, lanes => NULL, notify => send_signal.notify
        ) s;
        -- The holder of a key may have ended, and another have come, while the statement waited for the first.
        EXIT WHEN FOUND OR of_key IS NULL;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION {schema}.signal(
    target bigint, name text, payload jsonb DEFAULT NULL, dedup_key text DEFAULT NULL
) RETURNS boolean LANGUAGE plpgsql VOLATILE {session} AS $$
DECLARE
    delivery record;
BEGIN
    SELECT s.fresh INTO delivery FROM {schema}.send_signal(
        target, NULL, {schema}.check_name(name, 'name'), {schema}.check_payload(payload, name),
        CASE WHEN dedup_key IS NOT NULL THEN {schema}.check_name(dedup_key, 'dedup_key') END, true
    ) s;
    IF NOT FOUND THEN
        PERFORM {schema}.refuse_target(target::text, 'live instance');
    END IF;
    RETURN delivery.fresh;
END $$;

CREATE OR REPLACE FUNCTION {schema}.signal(
    target text, name text, payload jsonb DEFAULT NULL, dedup_key text DEFAULT NULL
) RETURNS boolean LANGUAGE plpgsql VOLATILE {session} AS $$
DECLARE
    delivery record;
BEGIN
    SELECT s.fresh INTO delivery FROM {schema}.send_signal(
        NULL, {schema}.check_name(target, 'target'), {schema}.check_name(name, 'name'), {schema}.check_payload(payload, name),
        CASE WHEN dedup_key IS NOT NULL THEN {schema}.check_name(dedup_key, 'dedup_key') END, true
    ) s;
    IF NOT FOUND THEN
        PERFORM {schema}.refuse_target(quote_literal(target), 'live instance');
    END IF;
    RETURN delivery.fresh;
END $$;

CREATE OR REPLACE FUNCTION {schema}.signal_or_insert(
    machine text, state jsonb, key text, name text, payload jsonb DEFAULT NULL, dedup_key text DEFAULT NULL,
    queue text DEFAULT NULL, version int DEFAULT NULL, priority int DEFAULT NULL, delay interval DEFAULT NULL,
    at timestamptz DEFAULT NULL, concurrency_key text DEFAULT NULL, concurrency_partition text DEFAULT NULL,
    rate_limit text DEFAULT NULL, rate_partition text DEFAULT NULL, weight int DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql VOLATILE {session} AS $$
#variable_conflict use_variable
DECLARE
    new jsonb;
    body text := {schema}.check_payload(payload, name);
    done record;
    held record;
BEGIN
    PERFORM {schema}.check_name(key, 'key'), {schema}.check_name(name, 'name');
    IF dedup_key IS NOT NULL THEN
        PERFORM {schema}.check_name(dedup_key, 'dedup_key');
    END IF;
    LOOP
        SELECT s.instance INTO done FROM {schema}.send_signal(NULL, key, name, body, dedup_key, true) s;
        IF FOUND THEN
            RETURN done.instance;
        END IF;
        new := coalesce(new, {schema}.with_lanes(jsonb_build_array({schema}.new_row(jsonb_build_object(
            'machine', machine, 'state', state, 'key', key, 'queue', queue, 'version', version, 'priority', priority,
            'delay', delay::text, 'at', at, 'concurrency_key', concurrency_key,
            'concurrency_partition', concurrency_partition, 'rate_limit', rate_limit, 'rate_partition', rate_partition,
            'weight', weight
        )))));
        SELECT r.id, r.duplicate INTO done FROM {schema}.insert_rows(new) r;
        IF NOT done.duplicate THEN  -- the row is ours until the end of the transaction
            PERFORM {schema}.send_signal(done.id, NULL, name, body, dedup_key, false);
            RETURN done.id;
        END IF;
        SELECT h.id INTO held FROM {schema}.run_holders(keys => jsonb_build_array(key)::text) h WHERE h.status = 9;
        IF FOUND THEN
            PERFORM {schema}.refuse_duplicate(key, held.id);
        END IF;
    END LOOP;
END $$;
