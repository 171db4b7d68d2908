-- Cancels live instances, whatever they do: they end here and now, and who runs one of them is told to stop.
--
-- Parameters: ids, a sorted JSON list; reason, the stored error (JSON); keep, whether to write history.
-- Locks: the rows and their parents' rows, all in id order (a parent's id is below its children's). It waits for a commit
--   in progress.
-- Index: the primary key; see claim.sql for the form of the condition. signals' primary key.
-- Guard: the rows' locks. A commit that came first has moved the row on or ended it; one that comes later finds no row
--   under its rev.
-- Answer: (id, worker, machine, lane, rev) of each that was cancelled, with the rev that it had, so its claim's if it ran;
--   (id, null, null, lane, null) of each parent whose join opened; (how many notifications went out, null, null, null,
--   null) if any.
WITH given AS MATERIALIZED (
    SELECT g::bigint AS id FROM jsonb_array_elements_text(%(ids)s::jsonb) AS g
),
family AS MATERIALIZED (
    SELECT g.id FROM given g
    UNION
    SELECT i.parent_id FROM given g JOIN {schema}.instances i ON i.id >= g.id AND i.id <= g.id
    ORDER BY 1
),
locked AS MATERIALIZED (
    SELECT i.id
    FROM family f
    JOIN {schema}.instances i ON i.id = ANY (ARRAY[f.id])
    FOR NO KEY UPDATE OF i
),
gone AS (
    DELETE FROM {schema}.instances i
    USING given g, (SELECT count(*) FROM locked) AS before
    WHERE i.id = ANY (ARRAY[g.id]) AND i.status < 9
    RETURNING i.*
),
placed AS MATERIALIZED (
    SELECT g.*, l.machine, l.retention, CASE WHEN g.inbox IS NOT NULL THEN {schema}.empty_inbox(g.id) END AS letters,
        coalesce({clock} + make_interval(secs => l.retention), 'infinity') AS expires_at
    FROM gone g
    JOIN {schema}.lanes l ON l.id = g.lane
),
buried AS (
    INSERT INTO {schema}.finished (
        id, rev, inserted_at, finished_at, expires_at, bucket, lane, worker, attempt, crashes, status, priority, step,
        key, state, error, scope, parent_id, parent_spawn, spawn, awaits, parked_until, children_left,
        children_spare, cancel_rest, inbox, gate, own_gate, rate, weight
    )
    SELECT p.id, p.rev + 1, p.inserted_at, {clock}, p.expires_at, {schema}.bucket_of(p.retention, p.expires_at), p.lane,
        p.worker, p.attempt, p.crashes, 8, p.priority, p.step, p.key, p.state, %(reason)s::jsonb, p.scope, p.parent_id,
        p.parent_spawn, p.spawn, p.awaits, CASE WHEN p.status = 3 THEN p.due_at END, p.children_left,
        p.children_spare, p.cancel_rest, p.letters, p.gate, p.own_gate, p.rate, p.weight
    FROM placed p
),
reserved AS (
    INSERT INTO {schema}.instances (id, due_at, inserted_at, updated_at, lane, status, step, key, scope, state)
    SELECT p.id, p.expires_at, p.inserted_at, {clock}, p.lane, 9, p.step, p.key, p.scope, jsonb_build_object()
    FROM placed p
    WHERE (p.scope >> 8) & 1 = 1
),
noted AS (
    INSERT INTO {schema}.transitions (instance_id, seq, at, attempt, outcome, step, error)
    SELECT p.id, p.rev + 1, {clock}, p.attempt, 5, p.step, %(reason)s::jsonb FROM placed p WHERE %(keep)s::boolean
),
counted AS MATERIALIZED (
    SELECT p.parent_id, p.parent_spawn, count(*) AS ends
    FROM placed p
    WHERE p.parent_id IS NOT NULL AND p.parent_id NOT IN (SELECT g.id FROM given g)
    GROUP BY 1, 2
),
joined AS (
    UPDATE {schema}.instances p
    SET status = CASE
            WHEN {schema}.join_opens(p.children_left, p.children_spare, c.ends, 0) THEN {schema}.ready(p.line) ELSE 4
        END,
        due_at = CASE
            WHEN {schema}.join_opens(p.children_left, p.children_spare, c.ends, 0) THEN {clock} ELSE p.due_at
        END,
        children_left = p.children_left - CASE WHEN p.children_spare IS NULL THEN c.ends ELSE 0 END,
        children_spare = p.children_spare - c.ends
    FROM counted c
    WHERE p.id = ANY (ARRAY[c.parent_id]) AND p.status = 4 AND p.spawn = ANY (ARRAY[c.parent_spawn])
    RETURNING p.id, p.status, p.lane, p.line
),
knocked AS (
    INSERT INTO {schema}.knocks (line)
    SELECT p.gate FROM placed p WHERE p.gate IS NOT NULL AND (p.status IN (0, 2) OR p.line = p.rate)
    UNION
    -- The line may wait for the tokens that it was to take, and those behind it need fewer; and in its key's line others
    -- may wait behind it, for which there is a slot.
    SELECT p.line FROM placed p WHERE p.status = 5 AND p.line = p.rate
    UNION
    SELECT j.line FROM joined j WHERE j.status = 5
    RETURNING line
),
told AS (
    SELECT pg_notify('{channel}', m.message)
    FROM (
        SELECT 'q:' || l.queue AS message FROM joined j JOIN {schema}.lanes l ON l.id = j.lane WHERE j.status = 0
        UNION
        SELECT 'k:' FROM knocked
        UNION
        SELECT 'c:' || p.worker || ':' || p.id || ':' || p.rev FROM placed p WHERE p.worker IS NOT NULL
        UNION
        SELECT 'e:' || p.id FROM placed p WHERE p.watched
    ) m
)
SELECT p.id, p.worker, p.machine, p.lane, p.rev FROM placed p
UNION ALL
SELECT j.id, NULL, NULL, j.lane, NULL FROM joined j WHERE j.status = 0
UNION ALL
SELECT count(*), NULL, NULL, NULL, NULL FROM told HAVING count(*) > 0
