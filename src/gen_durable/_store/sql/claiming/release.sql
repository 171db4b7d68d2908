-- Gives claimed rows back that were not started: no attempt is spent. They keep their slots, but in a paused queue they
-- give them up.
--
-- Parameters: worker; claims, a JSON list of {id, rev}.
-- Locks: the rows, in the order of the list (sorted by id); it waits only for a signal or cancel in progress.
-- Index: primary key; see claim.sql for the form of the condition. (Only a claimed row has a worker.) lanes' primary key.
-- Guard: the claim's rev and worker; a claim that is no longer held changes nothing.
WITH given AS MATERIALIZED (
    SELECT c.id, c.rev FROM jsonb_to_recordset(%(claims)s::jsonb) AS c (id bigint, rev bigint)
),
back AS (
    UPDATE {schema}.instances i
    SET worker = NULL, rev = i.rev + 1, updated_at = {clock},
        status = CASE
            WHEN i.line IS NULL THEN 0 WHEN (SELECT l.paused FROM {schema}.lanes l WHERE l.id = i.lane) THEN 5 ELSE 0
        END
    FROM given g
    WHERE i.id = ANY (ARRAY[g.id]) AND i.rev = g.rev AND i.worker = %(worker)s::int
    RETURNING i.lane, i.status, i.gate
),
knocked AS (
    INSERT INTO {schema}.knocks (line)
    SELECT DISTINCT b.gate FROM back b WHERE b.status = 5 AND b.gate IS NOT NULL
    RETURNING line
),
told AS (
    SELECT pg_notify('{channel}', m.message)
    FROM (
        SELECT 'q:' || l.queue AS message FROM back b JOIN {schema}.lanes l ON l.id = b.lane WHERE b.status = 0
        UNION
        SELECT 'k:' FROM knocked
    ) m
)
SELECT (SELECT count(*) FROM back), (SELECT count(*) FROM told)
