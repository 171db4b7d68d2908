-- After a queue was paused: its rows that hold the slot of a concurrency key, and that nobody has claimed, wait in its line
-- again. After it was resumed: every line is knocked at.
--
-- Parameters: queue; paused.
-- Locks: the rows FOR NO KEY UPDATE SKIP LOCKED: one that is just being claimed goes back by itself.
-- Index: instances_holders (all that hold a slot), primary key; lines' primary key.
-- Guard: the pause has committed before: who brings rows forward since passes by those of a paused queue.
-- Answer: how many rows went back.
WITH held AS MATERIALIZED (
    SELECT i.id
    FROM {schema}.instances i
    JOIN {schema}.lanes l ON l.id = i.lane
    WHERE %(paused)s::boolean AND l.queue = %(queue)s::text AND l.paused
        AND i.gate IS NOT NULL AND i.status IN (0, 2) AND i.status = 0
    FOR NO KEY UPDATE OF i SKIP LOCKED
),
back AS (
    UPDATE {schema}.instances i SET status = 5, updated_at = {clock}
    FROM held h
    WHERE i.id = ANY (ARRAY[h.id])
    RETURNING i.gate
),
knocked AS (
    INSERT INTO {schema}.knocks (line)
    SELECT b.gate FROM back b
    UNION
    SELECT n.line FROM {schema}.lines n WHERE NOT %(paused)s::boolean
    RETURNING line
),
told AS (
    SELECT pg_notify('{channel}', k.message) FROM (SELECT 'k:' AS message FROM knocked LIMIT 1) k
)
SELECT (SELECT count(*) FROM back), (SELECT count(*) FROM told)
