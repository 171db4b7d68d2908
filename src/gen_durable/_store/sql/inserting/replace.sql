-- Replaces what waits under a key and was never claimed, by a new row's content; its id stays.
--
-- Parameters: key; row, a JSON list of one (fields as in insert.sql); notify; soon, as in insert.sql.
-- Locks: the row; it waits for a claim in progress.
-- Index: instances_key, by both columns: a row of scope 0 is not meant.
-- Guard: status and rev, read under the lock: a row that was claimed, or is a child that its parent waits for, stays.
-- Answer: the id; no row where nothing was replaced.
WITH given AS MATERIALIZED (
    SELECT g.*, coalesce(g.at, {clock} + make_interval(secs => coalesce(g.delay, 0))) AS due_at
    FROM json_to_recordset(%(row)s::json) AS g (
        lane int, step text, state jsonb, key text, priority smallint, delay double precision, at timestamptz,
        scope smallint, gate text, own_gate text, rate text, weight int
    )
),
held AS MATERIALIZED (
    -- A row that waits for tokens makes way for those behind it, in its rate's line and in its key's.
    SELECT i.id, CASE WHEN i.status = 0 OR (i.status = 5 AND i.line = i.rate) THEN i.gate END AS frees,
        CASE WHEN i.status = 5 AND i.line = i.rate THEN i.line END AS leaves
    FROM {schema}.instances i
    WHERE i.key = %(key)s::text AND (CASE WHEN i.scope = 0 THEN i.id ELSE 0 END) = 0
        AND i.status IN (0, 1, 5) AND i.rev = 0 AND i.parent_id IS NULL
    FOR NO KEY UPDATE
),
replaced AS (
    UPDATE {schema}.instances i
    SET lane = g.lane, step = g.step, state = g.state, priority = coalesce(g.priority, 0), scope = g.scope,
        due_at = g.due_at, updated_at = {clock}, gate = g.gate, own_gate = g.own_gate, rate = g.rate, weight = g.weight,
        line = coalesce(g.gate, g.rate),
        status = CASE WHEN g.due_at > {clock} THEN 1 ELSE {schema}.ready(coalesce(g.gate, g.rate)) END
    FROM given g, held h
    WHERE i.id = ANY (ARRAY[h.id])
    RETURNING i.id, i.lane, i.status, i.due_at, i.line, h.frees, h.leaves
),
knocked AS (
    INSERT INTO {schema}.knocks (line)
    SELECT r.line FROM replaced r WHERE r.status = 5
    UNION
    SELECT r.frees FROM replaced r WHERE r.frees IS NOT NULL
    UNION
    SELECT r.leaves FROM replaced r WHERE r.leaves IS NOT NULL
    RETURNING line
),
told AS (
    SELECT pg_notify('{channel}', t.message)
    FROM (
        SELECT 'q:' || l.queue AS message FROM replaced r JOIN {schema}.lanes l ON l.id = r.lane WHERE r.status = 0
        UNION ALL
        SELECT 'k:' FROM knocked
        UNION ALL
        SELECT 't:' FROM replaced r
        WHERE r.status = 1 AND r.due_at < {clock} + make_interval(secs => %(soon)s::float8)
    ) t
    WHERE %(notify)s::boolean
)
SELECT r.id, (SELECT count(*) FROM told) FROM replaced r
