-- Limits: concurrency keys, token buckets, caps of queues.
--
-- A row with a limit that becomes due is blocked, in the index of its line. Only "admit" brings it forward, when it fits.
-- A line is 'c' (concurrency) or 'r' (rate), the limit's name, and for a partition \x1f and the partition.

CREATE TABLE {schema}.limits (
    kind       text             NOT NULL CHECK (kind IN ('concurrency', 'rate', 'queue')),
    name       text             NOT NULL,
    amount     double precision CHECK (amount > 0),           -- executing at once; of a rate: tokens. Null: taken away
    per        double precision CHECK (per > 0),              -- seconds in which so many tokens come
    burst      double precision CHECK (burst >= 1),           -- tokens at most
    configured jsonb,                                         -- what the configuration last said: a changed one wins
    changed_at timestamptz      NOT NULL,
    PRIMARY KEY (kind, name),
    CHECK ((kind = 'rate') = (per IS NOT NULL AND burst IS NOT NULL)),
    CHECK (kind <> 'rate' OR amount IS NOT NULL)  -- steps name their rates: those stay
);

-- The lines that are in use, or were lately. The row is the line's lock; what is held is counted from the instances.
CREATE TABLE {schema}.lines (
    line      text PRIMARY KEY,
    made_at   timestamptz      NOT NULL,
    tokens    double precision,             -- of a rate, at filled_at; null is a full bucket
    filled_at timestamptz,
    drawn     double precision NOT NULL DEFAULT 0,  -- of a rate: tokens of the rows that were runnable at the last look
    wake_at   timestamptz                   -- when somebody is to look again
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX lines_wake ON {schema}.lines (wake_at) WHERE wake_at IS NOT NULL;

-- Lines in which something may be brought forward: rows have come, or something was freed. Written without any lock, read
-- by "admit".
CREATE TABLE {schema}.knocks (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    line text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

ALTER TABLE {schema}.instances
    ADD COLUMN gate     text,  -- the line of the concurrency key of its step; held while the row is runnable or executing
    ADD COLUMN own_gate text,  -- that of the instance, for steps without one of their own
    ADD COLUMN rate     text,  -- the line of its step's rate
    ADD COLUMN weight   int,   -- the tokens that it takes there; null is 1
    ADD COLUMN line     text;  -- where it waits, when it waits: its gate's line, without one (or with that free) its rate's
CREATE INDEX instances_line    ON {schema}.instances (line, priority, due_at, id) WHERE status = 5;
CREATE INDEX instances_holders ON {schema}.instances (gate) WHERE gate IS NOT NULL AND status IN (0, 2);
CREATE INDEX instances_drawn   ON {schema}.instances (rate) WHERE rate IS NOT NULL AND status = 0;

ALTER TABLE {schema}.finished
    ADD COLUMN gate     text,  -- for a retry
    ADD COLUMN own_gate text,
    ADD COLUMN rate     text,
    ADD COLUMN weight   int;

ALTER TABLE {schema}.schedules
    ADD COLUMN gate     text,  -- of the instances that it starts
    ADD COLUMN own_gate text,
    ADD COLUMN rate     text,
    ADD COLUMN weight   int;

-- The status of a row that is due: with a line it is blocked until "admit" has looked.
CREATE FUNCTION {schema}.ready(line text) RETURNS smallint LANGUAGE sql IMMUTABLE AS $$
    SELECT (CASE WHEN line IS NULL THEN 0 ELSE 5 END)::smallint
$$;

CREATE FUNCTION {schema}.limit_of(line text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT substr(split_part(line, E'\x1f', 1), 2)
$$;

-- How many more a concurrency line lets run. Volatile: it counts when it is called, under the line's lock.
CREATE FUNCTION {schema}.room_of(of_line text) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN coalesce(
        (SELECT c.amount FROM {schema}.limits c WHERE c.kind = 'concurrency' AND c.name = {schema}.limit_of(of_line)), 1
    )::bigint - (
        SELECT count(*) FROM {schema}.instances i
        WHERE i.gate = of_line AND i.gate IS NOT NULL AND i.status IN (0, 2)
    );
END $$;

-- Whether a cap holds for a queue, in the whole cluster: then only who has counted what it runs may claim.
CREATE FUNCTION {schema}.is_capped(of_queue text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM {schema}.limits c WHERE c.kind = 'queue' AND c.name = of_queue AND c.amount IS NOT NULL
    )
$$;

-- How many more rows of some queues with a cap may be claimed; the caps stay locked until the end of the transaction.
-- Volatile: it counts under the locks.
CREATE FUNCTION {schema}.rooms_of(queues text[]) RETURNS TABLE (queue text, room bigint) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM {schema}.limits c
    WHERE c.kind = 'queue' AND c.name = ANY (queues) ORDER BY c.name FOR NO KEY UPDATE;
    RETURN QUERY
    SELECT c.name, c.amount::bigint - (
        SELECT count(*) FROM {schema}.instances i JOIN {schema}.lanes l ON l.id = i.lane
        WHERE i.status = 2 AND l.queue = c.name
    )
    FROM {schema}.limits c WHERE c.kind = 'queue' AND c.name = ANY (queues) AND c.amount IS NOT NULL;
END $$;

-- Brings forward what waits in some lines, as far as it fits. See limiting/admit.sql, the only caller.
--
-- Every statement in it sees what has committed before that statement began: so what is counted once a line is locked is
-- what whoever had the lock before has left.
CREATE FUNCTION {schema}.admit(
    v_now timestamptz, v_given text[], v_most int, v_worker int, v_pools jsonb, v_report boolean
) RETURNS TABLE (
    what text, name text, admitted bigint, holding bigint, room double precision, seconds double precision,
    id bigint, rev bigint, lane int, step text, state jsonb, attempt int, crashes smallint, priority smallint, key text,
    due_at timestamptz, inserted_at timestamptz, parent_id bigint, waits jsonb, gate text, own_gate text, rate text
) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_seen bigint[];
    v_due text[];
    v_mine text[];
    v_open text[];
    v_paused int[];
    v_part bigint;
    v_chosen bigint[];
    v_drawn bigint[];
    v_again boolean := false;
    v_room bigint;
    v_moved text[];  -- "line, rate" of what has gone from a key's line to a rate's
    v_timed boolean;
    v_tokens double precision;
    v_wake timestamptz;
    v_bucket record;
    v_row record;
BEGIN
    IF v_given IS NULL THEN
        SELECT array_agg(k.id), array_agg(k.line) INTO v_seen, v_due
        FROM (SELECT k.id, k.line FROM {schema}.knocks k ORDER BY k.id LIMIT v_most) k;
        v_due := ARRAY(
            SELECT unnest(v_due)
            UNION
            SELECT w.line
            FROM (SELECT l.line FROM {schema}.lines l WHERE l.wake_at <= v_now ORDER BY l.wake_at LIMIT v_most) w
        );
    ELSE
        v_due := ARRAY(SELECT DISTINCT d FROM unnest(v_given) d);
    END IF;
    IF cardinality(v_due) > 0 THEN
        FOR v_try IN 1..2 LOOP
            SELECT coalesce(array_agg(g.line), ARRAY[]::text[]), bool_or(g.wake_at IS NOT NULL) INTO v_mine, v_timed
            FROM (
                SELECT l.line, l.wake_at FROM unnest(v_due) d JOIN {schema}.lines l ON l.line = ANY (ARRAY[d])
                FOR UPDATE OF l SKIP LOCKED
            ) g;
            EXIT WHEN v_try = 2 OR cardinality(v_mine) = cardinality(v_due);
            INSERT INTO {schema}.lines (line, made_at)
            SELECT d, v_now FROM unnest(v_due) d
            WHERE NOT EXISTS (SELECT FROM {schema}.lines l WHERE l.line = d)
            ORDER BY d COLLATE "C"
            ON CONFLICT DO NOTHING;
            EXIT WHEN NOT FOUND;
        END LOOP;
        IF v_given IS NULL THEN
            DELETE FROM {schema}.knocks k
            USING unnest(v_seen) s
            WHERE k.id = ANY (ARRAY[s]) AND k.line = ANY (v_mine);
        ELSE
            -- Who has the line at present may have counted before what was freed here.
            INSERT INTO {schema}.knocks (line) SELECT d FROM unnest(v_due) d WHERE d <> ALL (v_mine);
        END IF;
        IF cardinality(v_mine) < cardinality(v_due) OR cardinality(v_seen) >= v_most THEN
            what := 'wake'; seconds := CASE WHEN cardinality(v_seen) >= v_most THEN 0 ELSE 0.005 END;
            RETURN NEXT;
        END IF;

        -- What is in a paused queue takes nothing.
        v_paused := ARRAY(SELECT l.id FROM {schema}.lanes l WHERE l.paused);

        -- Rates: the most urgent ones for which there are tokens. One that needs many is waited for. They come before the
        -- keys, whose lines they have left: the slots that they take here are counted there.
        v_chosen := ARRAY[]::bigint[];
        v_open := ARRAY[]::text[];
        FOR v_bucket IN
            -- The bucket fills behind what is runnable when that is claimed. Nobody says when that was, since the last
            -- look: so of what came since then not much counts.
            SELECT b.line, b.pace, b.burst, least(
                b.burst - b.drawn,
                coalesce(b.tokens + b.since * b.pace, b.burst),
                b.burst - b.before + least(b.since, 0.25) * b.pace
            ) AS tokens
            FROM (
                SELECT l.line, l.tokens, greatest(extract(epoch FROM v_now - l.filled_at), 0) AS since, l.drawn AS before,
                    coalesce(c.amount / c.per, 1e9) AS pace,
                    coalesce(c.burst, 1e9) AS burst,
                    (
                        SELECT coalesce(sum(least(coalesce(i.weight, 1), c.burst)), 0) FROM {schema}.instances i
                        WHERE i.rate = l.line AND i.rate IS NOT NULL AND i.status = 0
                    ) AS drawn
                FROM unnest(v_mine) m
                JOIN {schema}.lines l ON l.line = ANY (ARRAY[m])
                LEFT JOIN {schema}.limits c ON c.kind = 'rate' AND c.name = {schema}.limit_of(m)
                WHERE m LIKE 'r%'
            ) b
        LOOP
            v_tokens := v_bucket.tokens;
            v_wake := NULL;
            v_drawn := ARRAY[]::bigint[];
            FOR v_row IN
                SELECT i.id, i.gate, least(coalesce(i.weight, 1), v_bucket.burst) AS weight
                FROM {schema}.instances i
                WHERE i.line = v_bucket.line AND i.status = 5 AND i.lane <> ALL (v_paused)
                ORDER BY i.priority, i.due_at, i.id
                LIMIT least(greatest(floor(v_tokens), 0) + 1, v_most)
                FOR NO KEY UPDATE SKIP LOCKED
            LOOP
                IF v_row.weight > v_tokens + 1e-6 THEN
                    v_wake := v_now + make_interval(secs => greatest((v_row.weight - v_tokens) / v_bucket.pace, 0.001));
                    EXIT;
                END IF;
                IF v_row.gate IS NOT NULL THEN
                    -- Both or neither.
                    PERFORM FROM {schema}.lines l WHERE l.line = v_row.gate FOR UPDATE SKIP LOCKED;
                    v_room := CASE WHEN FOUND THEN greatest({schema}.room_of(v_row.gate), 0) ELSE -1 END;
                    UPDATE {schema}.instances i
                    SET status = CASE WHEN v_room > 0 THEN 0 ELSE 5 END, line = i.gate, updated_at = v_now
                    WHERE i.id = v_row.id;
                    -- Somebody else looks there just now; or those behind this row may follow it.
                    IF v_room < 0 OR v_room > 1 AND EXISTS (
                        SELECT FROM {schema}.instances i WHERE i.line = v_row.gate AND i.status = 5
                    ) THEN
                        INSERT INTO {schema}.knocks (line) VALUES (v_row.gate);
                        v_again := true;
                    END IF;
                    CONTINUE WHEN v_room <= 0;
                END IF;
                v_drawn := v_drawn || v_row.id;
                v_tokens := v_tokens - v_row.weight;
            END LOOP;
            v_chosen := v_chosen || v_drawn;
            IF v_wake IS NULL THEN
                v_open := v_open || v_bucket.line;
            END IF;
            -- Who began earlier can come later: what has come since is counted once.
            UPDATE {schema}.lines l SET tokens = v_tokens, filled_at = greatest(l.filled_at, v_now), wake_at = v_wake
            WHERE l.line = v_bucket.line;
            IF v_report THEN
                what := 'line'; name := v_bucket.line; room := v_tokens;
                admitted := cardinality(v_drawn); holding := NULL;
                seconds := extract(epoch FROM v_wake - v_now);
                RETURN NEXT;
            END IF;
        END LOOP;

        -- Concurrency: as many as there is room for.
        v_part := greatest(v_most / greatest(cardinality(v_mine), 1), 1);
        WITH line AS MATERIALIZED (
            SELECT m AS line, greatest(coalesce(c.amount, 1)::bigint - (
                SELECT count(*) FROM {schema}.instances i
                WHERE i.gate = m AND i.gate IS NOT NULL AND i.status IN (0, 2)
            ), 0) AS room
            FROM unnest(v_mine) m
            LEFT JOIN {schema}.limits c ON c.kind = 'concurrency' AND c.name = {schema}.limit_of(m)
            WHERE m LIKE 'c%'
        ),
        picked AS MATERIALIZED (
            SELECT n.line, p.id, p.rate
            FROM line n
            CROSS JOIN LATERAL (
                SELECT i.id, i.rate FROM {schema}.instances i
                WHERE i.line = n.line AND i.status = 5 AND i.lane <> ALL (v_paused)
                ORDER BY i.priority, i.due_at, i.id
                LIMIT least(n.room, v_part)
                FOR NO KEY UPDATE SKIP LOCKED
            ) p
        ),
        moved AS (
            -- What needs tokens too waits for them, and does not hold its slot meanwhile.
            UPDATE {schema}.instances i SET line = p.rate, updated_at = v_now
            FROM picked p WHERE p.rate IS NOT NULL AND i.id = ANY (ARRAY[p.id])
            RETURNING i.gate, i.rate
        ),
        knocked AS (
            INSERT INTO {schema}.knocks (line) SELECT DISTINCT m.rate FROM moved m
        ),
        got AS (
            -- Both lists meet by grouping: a join of them is a loop in a loop.
            SELECT u.line
            FROM (
                SELECT n.line, n.room, 0 AS one FROM line n
                UNION ALL
                SELECT p.line, NULL, CASE WHEN p.rate IS NULL THEN 1 ELSE 0 END FROM picked p
            ) u
            GROUP BY u.line
            HAVING sum(u.one) < max(u.room)
        )
        SELECT v_chosen || ARRAY(SELECT p.id FROM picked p WHERE p.rate IS NULL),
            ARRAY(SELECT DISTINCT m.gate || E'\x1f' || m.rate FROM moved m), v_open || ARRAY(SELECT g.line FROM got g)
        INTO v_chosen, v_moved, v_open;
        IF v_again OR cardinality(v_moved) > 0 THEN
            what := 'wake'; name := NULL; seconds := CASE WHEN v_again THEN 0.005 ELSE 0 END;
            RETURN NEXT;
        END IF;

        -- What was chosen is runnable; or a claim at once, where the worker keeps places for it.
        RETURN QUERY
        WITH place AS MATERIALIZED (
            SELECT w.lane, w.pool, w.room
            FROM jsonb_to_recordset(v_pools) AS w (lane int, pool int, room int)
            JOIN {schema}.lanes l ON l.id = w.lane AND NOT l.paused AND NOT {schema}.is_capped(l.queue)
            WHERE EXISTS (SELECT FROM {schema}.workers k WHERE k.id = v_worker)
        ),
        next AS MATERIALIZED (
            SELECT i.id, i.crashes = 0 AND row_number() OVER (
                PARTITION BY p.pool, i.crashes > 0 ORDER BY i.priority, i.due_at, i.id
            ) <= p.room AS here
            FROM unnest(v_chosen) c
            JOIN {schema}.instances i ON i.id = ANY (ARRAY[c])
            LEFT JOIN place p ON p.lane = i.lane
        ),
        went AS (
            UPDATE {schema}.instances i
            SET status = CASE WHEN n.here THEN 2 ELSE 0 END, worker = CASE WHEN n.here THEN v_worker END,
                rev = i.rev + CASE WHEN n.here THEN 1 ELSE 0 END, line = coalesce(i.gate, i.rate), updated_at = v_now
            FROM next n
            WHERE i.id = ANY (ARRAY[n.id])
            RETURNING i.*
        )
        SELECT 'claim', NULL::text, NULL::bigint, NULL::bigint, NULL::float8, NULL::float8,
            g.id, g.rev, g.lane, g.step, g.state, g.attempt, g.crashes, g.priority, g.key, g.due_at, g.inserted_at,
            g.parent_id,
            CASE
                WHEN g.inbox IS NOT NULL OR g.awaits IS NOT NULL OR g.spawn IS NOT NULL
                THEN jsonb_build_object(
                    'awaits', g.awaits, 'spawn', g.spawn, 'left', g.children_left, 'spare', g.children_spare,
                    'rest', g.cancel_rest, 'signals', CASE WHEN g.inbox IS NOT NULL THEN {schema}.read_inbox(g.id) END
                )
            END,
            g.gate, g.own_gate, g.rate
        FROM went g WHERE g.status = 2
        UNION ALL
        SELECT 'queue', l.queue, count(*), NULL, NULL, NULL,
            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
        FROM went g JOIN {schema}.lanes l ON l.id = g.lane
        WHERE g.status = 0
        GROUP BY l.queue;

        -- More would fit: there is more than one pass takes, or the next row is just locked by somebody, or what was
        -- first may wait long for its tokens, and somewhat behind it is a row that does not wait for the same ones.
        IF v_timed OR cardinality(v_open) > 0 THEN
            UPDATE {schema}.lines l
            SET wake_at = CASE WHEN w.more THEN v_now + make_interval(secs => 0.01) END
            FROM (
                SELECT m AS line, m = ANY (v_open) AND EXISTS (
                    SELECT FROM (
                        SELECT i.rate FROM {schema}.instances i
                        WHERE i.line = m AND i.status = 5 AND i.lane <> ALL (v_paused)
                        ORDER BY i.priority, i.due_at, i.id
                        LIMIT 100
                    ) n
                    WHERE n.rate IS NULL OR m || E'\x1f' || n.rate <> ALL (v_moved)
                ) AS more
                FROM unnest(v_mine) m WHERE m LIKE 'c%' OR m = ANY (v_open)
            ) w
            WHERE l.line = ANY (ARRAY[w.line]) AND (w.more OR l.wake_at IS NOT NULL);
        END IF;
        -- What is runnable is looked at again: see the buckets.
        UPDATE {schema}.lines l
        SET drawn = w.drawn,
            wake_at = CASE WHEN w.drawn > 0 THEN least(l.wake_at, v_now + make_interval(secs => 0.2)) ELSE l.wake_at END
        FROM (
            SELECT m AS line, (
                SELECT coalesce(sum(least(coalesce(i.weight, 1), c.burst)), 0) FROM {schema}.instances i
                WHERE i.rate = m AND i.rate IS NOT NULL AND i.status = 0
            ) AS drawn
            FROM unnest(v_mine) m
            LEFT JOIN {schema}.limits c ON c.kind = 'rate' AND c.name = {schema}.limit_of(m)
            WHERE m LIKE 'r%'
        ) w
        WHERE l.line = ANY (ARRAY[w.line]) AND (w.drawn > 0 OR l.drawn > 0);
        IF v_report THEN
            FOR v_row IN SELECT m AS line FROM unnest(v_mine) m WHERE m LIKE 'c%' LOOP
                what := 'line'; name := v_row.line; room := {schema}.room_of(v_row.line);
                admitted := (
                    SELECT count(*) FROM unnest(v_chosen) c JOIN {schema}.instances i ON i.id = ANY (ARRAY[c])
                    WHERE i.gate = v_row.line
                );
                holding := (
                    SELECT count(*) FROM {schema}.instances i
                    WHERE i.gate = v_row.line AND i.gate IS NOT NULL AND i.status IN (0, 2)
                );
                seconds := (
                    SELECT 0 WHERE EXISTS (
                        SELECT FROM {schema}.instances i WHERE i.line = v_row.line AND i.status = 5
                    )
                );
                RETURN NEXT;
            END LOOP;
        END IF;
    END IF;
    what := 'wake'; name := NULL; admitted := NULL; holding := NULL; room := NULL;
    seconds := (
        SELECT greatest(extract(epoch FROM w.wake_at - v_now), 0)
        FROM (SELECT l.wake_at FROM {schema}.lines l WHERE l.wake_at IS NOT NULL ORDER BY l.wake_at LIMIT 1) w
    );
    IF seconds IS NOT NULL THEN
        RETURN NEXT;
    END IF;
END $$;
