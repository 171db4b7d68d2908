-- Waiting: signals, children and joins, keys that outlive their instance, callers who wait for an end.
--
-- One more status, 9: a key's reservation. The instance has ended, and its row stays as a stub for as long as its
-- terminal row does, so that one unique index decides about the key, whoever races.

ALTER TABLE {schema}.instances
    ADD COLUMN scope          smallint,  -- of the key: null is live, 0 is none, else a bit for each terminal status
    ADD COLUMN inbox          int,       -- how many signals ever came; null is none
    ADD COLUMN awaits         text[],    -- names of signals; kept until the woken step progresses
    ADD COLUMN parent_id      bigint,
    ADD COLUMN parent_spawn   int,       -- which spawn of its parent it belongs to
    ADD COLUMN spawn          int,       -- how many spawns it has made
    ADD COLUMN children_left  int,       -- that the join still counts on; null: no join
    ADD COLUMN children_spare int,       -- that may fail before the join can't be reached; null: failures count too
    ADD COLUMN cancel_rest    boolean,   -- when the join opens
    ADD COLUMN watched        boolean,   -- somebody waits for its end in another process
    DROP CONSTRAINT instances_live,
    ADD CONSTRAINT instances_live CHECK (status BETWEEN 0 AND 5 OR status = 9);

-- A parked row's due_at is its deadline, or infinity.
DROP INDEX {schema}.instances_scheduled;
CREATE INDEX instances_timers ON {schema}.instances (due_at) WHERE status IN (1, 3, 4) AND due_at < 'infinity';
CREATE INDEX instances_reserved ON {schema}.instances (due_at) WHERE status = 9;
CREATE INDEX instances_parent ON {schema}.instances (parent_id, parent_spawn, id) WHERE parent_id IS NOT NULL;
DROP INDEX {schema}.instances_key;
CREATE UNIQUE INDEX instances_key ON {schema}.instances (key, (CASE WHEN scope = 0 THEN id ELSE 0 END))
    WHERE key IS NOT NULL;

ALTER TABLE {schema}.finished
    ADD COLUMN scope        smallint,
    ADD COLUMN parent_id    bigint,
    ADD COLUMN parent_spawn int,
    ADD COLUMN spawn        int,
    -- What a failed or cancelled one had been handed: a retry runs its step with that again.
    ADD COLUMN awaits        text[],
    ADD COLUMN parked_until  timestamptz,  -- its deadline (or infinity), when it was cancelled while it waited for a signal
    ADD COLUMN inbox         jsonb,
    ADD COLUMN children_left  int,
    ADD COLUMN children_spare int,
    ADD COLUMN cancel_rest    boolean;
CREATE INDEX finished_parent ON {schema}.finished (parent_id, parent_spawn, id) WHERE parent_id IS NOT NULL;

-- The inboxes. Ids grow in the order in which an instance's signals commit, because each is drawn under its row's lock.
CREATE TABLE {schema}.signals (
    instance_id bigint      NOT NULL,
    id          bigint      GENERATED ALWAYS AS IDENTITY,
    status      smallint    NOT NULL DEFAULT 0,  -- 0 new, 1 handed to a step that awaits more, 2 consumed (its dedup_key stays)
    sent_at     timestamptz NOT NULL,
    name        text        NOT NULL,
    payload     jsonb,
    dedup_key   text,
    PRIMARY KEY (instance_id, id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
CREATE UNIQUE INDEX signals_dedup ON {schema}.signals (instance_id, dedup_key) WHERE dedup_key IS NOT NULL;

-- Whether an inbox holds a signal of these names that no step was handed yet, besides those that one was handed just now.
-- Volatile: it looks when it is called, under the row's lock, and so sees the signal of a transaction that this one
-- waited for.
CREATE FUNCTION {schema}.has_new_signal(of_instance bigint, names text[], handed bigint[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN EXISTS (
        SELECT 1 FROM {schema}.signals s
        WHERE s.instance_id = of_instance AND s.status = 0 AND s.name = ANY (names) AND s.id <> ALL (handed)
    );
END $$;

-- Which signals (of a status below the given one) are taken where an inbox is too large to be taken whole: by status and id,
-- so new ones first, up to the one in the answer, which are 64 MB. Null: all, as nearly always. A value of json has a limit,
-- and a claim or an end must not fail at it.
CREATE FUNCTION {schema}.inbox_part(of_instance bigint, below int) RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    letter record;
    room bigint := 64000000;
    last bigint[];
BEGIN
    -- What is stored is compressed, at most by a factor of 256; to look closer it must be read.
    IF (
        SELECT count(*) < 50000 AND coalesce(sum(pg_column_size(s.payload)), 0) < 250000
        FROM {schema}.signals s WHERE s.instance_id = of_instance AND s.status < below
    ) THEN
        RETURN NULL;
    END IF;
    FOR letter IN
        SELECT l.status, l.id, 200 + octet_length(l.name) + coalesce(octet_length(l.payload::text), 0) AS size
        FROM (
            SELECT s.status, s.id, s.name, s.payload FROM {schema}.signals s
            WHERE s.instance_id = of_instance AND s.status < below
            ORDER BY s.status, s.id
            OFFSET 0
        ) l
    LOOP
        room := room - letter.size;
        IF room < 0 AND last IS NOT NULL THEN
            RETURN last;
        END IF;
        last := ARRAY[letter.status, letter.id];
    END LOOP;
    RETURN NULL;
END $$;

-- The signals that a claim hands over; volatile for the same reason.
CREATE FUNCTION {schema}.read_inbox(of_instance bigint) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    last bigint[] := {schema}.inbox_part(of_instance, 2);
BEGIN
    RETURN (
        SELECT jsonb_agg(
            jsonb_build_object(
                'id', s.id, 'status', s.status, 'sent_at', s.sent_at, 'name', s.name, 'payload', s.payload
            ) ORDER BY s.id
        )
        FROM {schema}.signals s
        WHERE s.instance_id = of_instance AND s.status < 2 AND (last IS NULL OR (s.status, s.id) <= (last[1], last[2]))
    );
END $$;

-- Empties the inbox of an instance that has just ended, and answers with what was in it; volatile for the same reason.
CREATE FUNCTION {schema}.empty_inbox(of_instance bigint) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    last bigint[] := {schema}.inbox_part(of_instance, 3);
    was jsonb;
BEGIN
    WITH gone AS (DELETE FROM {schema}.signals s WHERE s.instance_id = of_instance RETURNING s.*)
    SELECT jsonb_agg(to_jsonb(g)) FROM gone g WHERE last IS NULL OR (g.status, g.id) <= (last[1], last[2]) INTO was;
    RETURN was;
END $$;

-- Whether a join opens when so many more of its children have ended, "good" of them done. Where failures don't count
-- (spare is not null), also when the number can't be reached any more.
CREATE FUNCTION {schema}.join_opens(children_left int, spare int, ends bigint, good bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT children_left - CASE WHEN spare IS NULL THEN ends ELSE good END <= 0 OR coalesce(spare - (ends - good) < 0, false)
$$;

-- The day on which a terminal row's partition is dropped: see the table.
CREATE FUNCTION {schema}.bucket_of(keep double precision, expires_at timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN keep BETWEEN 86400 AND 2678400 THEN (expires_at AT TIME ZONE 'UTC')::date ELSE 'infinity' END
$$;

DROP VIEW {schema}.all_instances;
CREATE VIEW {schema}.all_instances AS
SELECT i.id, l.machine, l.version, l.queue, i.step, i.status, i.priority, i.attempt, i.crashes, i.key, i.state,
       NULL::jsonb AS result, i.error, i.worker, i.rev, nullif(i.due_at, 'infinity') AS due_at, i.inserted_at,
       i.updated_at, NULL::timestamptz AS finished_at, NULL::timestamptz AS expires_at,
       CASE WHEN i.status = 3 THEN i.awaits END AS awaits, CASE WHEN i.status = 4 THEN i.children_left END AS children_left,
       i.parent_id, i.scope
FROM {schema}.instances i
JOIN {schema}.lanes l ON l.id = i.lane
WHERE i.status < 9
UNION ALL
SELECT f.id, l.machine, l.version, l.queue, f.step, f.status, f.priority, f.attempt, f.crashes, f.key, f.state,
       f.result, f.error, f.worker, f.rev, NULL, f.inserted_at, f.finished_at, f.finished_at,
       nullif(f.expires_at, 'infinity'), NULL, NULL, f.parent_id, f.scope
FROM {schema}.finished f
JOIN {schema}.lanes l ON l.id = f.lane;

-- Drops the partitions that hold nothing any more that is to be kept; answers with their names. One that somebody is
-- reading stays for the next time.
CREATE OR REPLACE FUNCTION {schema}.drop_expired_partitions() RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    part record;
    dropped text[] := '{}';
    today date := ({clock} AT TIME ZONE 'UTC')::date;
    oldest timestamptz;
    pinned boolean;
    misses int := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock({lockspace}, 1) THEN
        RETURN dropped;
    END IF;
    SET LOCAL lock_timeout = '200ms';
    -- No transition that is to be kept is older than the oldest instance; ids are drawn in the order of insertion.
    SELECT least(
        (SELECT i.inserted_at FROM {schema}.instances i ORDER BY i.id LIMIT 1),
        (SELECT f.inserted_at FROM {schema}.finished f ORDER BY f.id LIMIT 1),
        {clock}
    ) INTO oldest;
    FOR part IN
        SELECT c.relname AS name, p.relname AS parent, to_date(right(c.relname, 8), 'YYYYMMDD') AS day
        FROM pg_inherits h
        JOIN pg_class c ON c.oid = h.inhrelid
        JOIN pg_class p ON p.oid = h.inhparent
        WHERE p.relnamespace = '{schema}'::regnamespace AND p.relname IN ('finished', 'transitions')
            AND p.relkind = 'p' AND c.relname ~ '_[0-9]{8}$'
        ORDER BY c.relname
    LOOP
        CONTINUE WHEN part.day >= today;
        pinned := part.parent = 'transitions' AND ((part.day + 1) || ' 00:00+00')::timestamptz > oldest;
        CONTINUE WHEN pinned AND part.day > today - 33;
        -- A drop keeps commits waiting until the end of the transaction: no copying under its lock.
        EXIT WHEN pinned AND cardinality(dropped) > 0;
        BEGIN
            IF pinned THEN
                -- Older than every partition of terminal rows: only long-lived instances still have history here.
                EXECUTE format('INSERT INTO {schema}.transitions_kept SELECT t.* FROM {schema}.%I t '
                    'WHERE EXISTS (SELECT 1 FROM {schema}.instances i WHERE i.id = t.instance_id) '
                    'OR EXISTS (SELECT 1 FROM {schema}.finished f WHERE f.id = t.instance_id)', part.name);
            ELSIF part.parent = 'finished' THEN
                -- A child stays while its parent's join does: to where rows are swept one by one.
                EXECUTE format('WITH kept AS (DELETE FROM {schema}.%1$I f USING {schema}.instances p '
                    'WHERE f.parent_id = p.id AND f.parent_spawn = p.spawn AND p.children_left IS NOT NULL RETURNING f.*) '
                    'INSERT INTO {schema}.finished_swept (%2$s) SELECT %3$s FROM kept k', part.name,
                    (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
                     WHERE a.attrelid = '{schema}.finished'::regclass AND a.attnum > 0 AND NOT a.attisdropped),
                    (SELECT string_agg(CASE WHEN a.attname = 'bucket' THEN '''infinity''::date'
                        ELSE 'k.' || quote_ident(a.attname) END, ', ' ORDER BY a.attnum) FROM pg_attribute a
                     WHERE a.attrelid = '{schema}.finished'::regclass AND a.attnum > 0 AND NOT a.attisdropped));
                -- The little history that is not in the partition of its day goes with its instance.
                EXECUTE format('DELETE FROM {schema}.transitions_kept t '
                    'WHERE EXISTS (SELECT 1 FROM {schema}.%I f WHERE f.id = t.instance_id)', part.name);
                EXECUTE format('DELETE FROM {schema}.transitions_default t '
                    'WHERE EXISTS (SELECT 1 FROM {schema}.%I f WHERE f.id = t.instance_id)', part.name);
            END IF;
            EXECUTE format('DROP TABLE {schema}.%I', part.name);
            dropped := dropped || part.name::text;
        EXCEPTION WHEN lock_not_available THEN
            -- Commits wait behind us while we wait: not for every partition that a long reader has open.
            misses := misses + 1;
            EXIT WHEN misses = 3;
        END;
    END LOOP;
    RETURN dropped;
END $$;
