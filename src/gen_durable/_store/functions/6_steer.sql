-- Cancel and retry, for anybody who speaks SQL.

-- The error of a target that is not there.
CREATE OR REPLACE FUNCTION {schema}.refuse_target(target text, what text) RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'P0002', MESSAGE = format('there is no %s %s', what, target),
        HINT = 'It never was there, or has ended: look into the view all_instances.';
END $$;

-- The instance of an id or a key: of several with a key the live one, else the one that ended last.
CREATE OR REPLACE FUNCTION {schema}.target_of(of_id bigint, of_key text)
RETURNS TABLE (id bigint, machine text, version int, status smallint, key text, ended boolean)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    IF of_id IS NOT NULL THEN
        RETURN QUERY SELECT v.id, v.machine, v.version, v.status, v.key, v.finished_at IS NOT NULL
        FROM {schema}.all_instances v WHERE v.id = of_id;
    ELSE
        RETURN QUERY SELECT v.id, v.machine, v.version, v.status, v.key, v.finished_at IS NOT NULL
        FROM {schema}.all_instances v WHERE v.key = {schema}.check_name(of_key, 'target')
        ORDER BY (v.finished_at IS NULL) DESC, v.id DESC LIMIT 1;
    END IF;
    IF NOT FOUND THEN
        PERFORM {schema}.refuse_target(coalesce(of_id::text, quote_literal(of_key)), 'instance');
    END IF;
END $$;

-- Cancels one, and with "cascade" its live descendants: as the client does, the whole family in the order of ids; what was
-- just being spawned is found when its parent's row is gone.
CREATE OR REPLACE FUNCTION {schema}.cancel_one(of_id bigint, of_key text, cascade boolean, reason text) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    target record;
    keep boolean;
    error text;
    family bigint[];
    level bigint[];
    ended bigint[];
    was_live boolean := false;
BEGIN
    error := jsonb_build_object('type', 'Cancelled', 'message', {schema}.check_name(left(reason, 500), 'reason'))::text;
    IF cascade IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22004', MESSAGE = 'cascade is null', HINT = 'Give true or false.';
    END IF;
    SELECT t.* INTO target FROM {schema}.target_of(of_id, of_key) t;
    IF target.ended AND NOT cascade THEN
        RETURN false;
    END IF;
    keep := coalesce((
        SELECT m.history FROM {schema}.machines m WHERE m.name = target.machine AND m.version = target.version
    ), true);
    family := ARRAY[target.id];
    LOOP
        level := family;
        WHILE cascade AND cardinality(level) > 0 LOOP
            level := ARRAY(
                SELECT d.id FROM {schema}.run_descend(parents => to_jsonb(level)::text, spawn => NULL) d
                WHERE d.id <> ALL (family)
            );
            family := family || level;
        END LOOP;
        family := ARRAY(SELECT DISTINCT f FROM unnest(family) f ORDER BY f);
        ended := ARRAY(
            SELECT c.id FROM {schema}.run_cancel(ids => to_jsonb(family)::text, reason => error, keep => keep) c
            WHERE c.machine IS NOT NULL
        );
        was_live := was_live OR target.id = ANY (ended);
        EXIT WHEN NOT cascade;
        family := ARRAY(
            SELECT d.id FROM {schema}.run_descend(parents => to_jsonb(family)::text, spawn => NULL) d ORDER BY d.id
        );
        EXIT WHEN cardinality(family) = 0;
    END LOOP;
    RETURN was_live;
END $$;

CREATE OR REPLACE FUNCTION {schema}.cancel(target bigint, cascade boolean DEFAULT false, reason text DEFAULT 'cancelled')
RETURNS boolean LANGUAGE plpgsql VOLATILE {session} AS $$
BEGIN
    RETURN {schema}.cancel_one(target, NULL, cascade, reason);
END $$;

CREATE OR REPLACE FUNCTION {schema}.cancel(target text, cascade boolean DEFAULT false, reason text DEFAULT 'cancelled')
RETURNS boolean LANGUAGE plpgsql VOLATILE {session} AS $$
BEGIN
    RETURN {schema}.cancel_one(NULL, target, cascade, reason);
END $$;

-- Brings one back that has failed or was cancelled.
CREATE OR REPLACE FUNCTION {schema}.retry_one(of_id bigint, of_key text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    target record;
    holder bigint;
BEGIN
    SELECT t.* INTO target FROM {schema}.target_of(of_id, of_key) t;
    PERFORM FROM {schema}.run_retry(id => target.id);
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = format('instance %s is %s', target.id, CASE target.status
                WHEN 2 THEN 'executing' WHEN 3 THEN 'awaiting_signal' WHEN 4 THEN 'awaiting_children' WHEN 5 THEN 'blocked'
                WHEN 6 THEN 'done' WHEN 7 THEN 'failed' WHEN 8 THEN 'cancelled' ELSE 'runnable'
            END),
            HINT = 'Only a failed or cancelled one can be retried.';
    END IF;
EXCEPTION WHEN unique_violation THEN
    SELECT h.id INTO holder FROM {schema}.run_holders(keys => jsonb_build_array(target.key)::text) h;
    PERFORM {schema}.refuse_duplicate(target.key, holder);
END $$;

CREATE OR REPLACE FUNCTION {schema}.retry(target bigint) RETURNS void LANGUAGE plpgsql VOLATILE {session} AS $$
BEGIN
    PERFORM {schema}.retry_one(target, NULL);
END $$;

CREATE OR REPLACE FUNCTION {schema}.retry(target text) RETURNS void LANGUAGE plpgsql VOLATILE {session} AS $$
BEGIN
    PERFORM {schema}.retry_one(NULL, target);
END $$;
