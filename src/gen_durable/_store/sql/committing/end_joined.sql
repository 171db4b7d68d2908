-- Commits a group of outcomes that end instances, children among them: their parents' joins are counted down.
--
-- Parameters: worker; outcomes, a JSON list sorted by id (the fields of committing/end.sql); first, a sorted JSON list of ids,
--   as in committing/commit.sql.
-- Locks: "first"; then the rows to end, in id order, as a guarded delete. It waits for a cancel or a signal in progress.
-- Index: the primary key; see claim.sql for the form of the condition.
-- Guard: the claim's rev and worker. What does not match is not in the answer. A join counts only while its parent waits
--   for this very spawn. The slots of concurrency keys are not looked after: nothing that holds one comes here.
-- Answer: (id, new rev, lane) as of committing/commit.sql, with its marks.
{part locked}
o AS MATERIALIZED (
    SELECT g.id, g.rev, 2 AS op, g.state, g.result, g.keep, g.error, coalesce(g.kind, 3::smallint) AS kind, g.ran,
        coalesce(g.tried, 0) AS tried, g.took, coalesce(g.history, 1::smallint) AS history
    FROM (SELECT count(*) FROM locked) AS before  -- everything below comes after the locks
    CROSS JOIN json_to_recordset(%(outcomes)s::json) AS g (
        id bigint, rev bigint, state jsonb, result jsonb, keep double precision, error jsonb, kind smallint, ran text,
        tried int, took real, history smallint
    )
),
{part ended}
{part joined}
knocked AS (
    INSERT INTO {schema}.knocks (line) SELECT DISTINCT j.line FROM joined j WHERE j.status = 5 RETURNING line
),
told AS (
    SELECT pg_notify('{channel}', m.message)
    FROM (
        SELECT 'q:' || l.queue AS message
        FROM (SELECT DISTINCT j.lane FROM joined j WHERE j.status = 0) a
        JOIN {schema}.lanes l ON l.id = a.lane
        UNION
        SELECT 'e:' || e.id FROM ended e WHERE e.watched
    ) m
)
SELECT e.id, e.rev, NULL::int AS lane FROM ended e
UNION ALL
SELECT j.id, -1, j.lane FROM joined j WHERE j.status = 0
UNION ALL
SELECT count(*), -2, NULL FROM told HAVING count(*) > 0
UNION ALL
SELECT count(*), -5, NULL FROM reserved HAVING count(*) > 0
UNION ALL
SELECT count(*), -3, NULL FROM knocked HAVING count(*) > 0
