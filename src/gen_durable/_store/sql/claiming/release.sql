-- Gives claimed rows back that were not started: no attempt is spent.
--
-- Parameters: worker; claims, a JSON list of {id, rev}.
-- Locks: the rows, in the order of the list (sorted by id); it waits only for a signal or cancel in progress.
-- Index: primary key; see claim.sql for the form of the condition. (Only a claimed row has a worker.)
-- Guard: the claim's rev and worker; a claim that is no longer held changes nothing.
WITH given AS MATERIALIZED (
    SELECT c.id, c.rev FROM jsonb_to_recordset(%(claims)s::jsonb) AS c (id bigint, rev bigint)
),
back AS (
    UPDATE {schema}.instances i
    SET status = 0, worker = NULL, rev = i.rev + 1, updated_at = {clock}
    FROM given g
    WHERE i.id = ANY (ARRAY[g.id]) AND i.rev = g.rev AND i.worker = %(worker)s::int
    RETURNING i.lane
),
told AS (
    SELECT pg_notify('{channel}', 'q:' || q.queue)
    FROM (SELECT DISTINCT l.queue FROM back b JOIN {schema}.lanes l ON l.id = b.lane) q
)
SELECT (SELECT count(*) FROM back), (SELECT count(*) FROM told)
