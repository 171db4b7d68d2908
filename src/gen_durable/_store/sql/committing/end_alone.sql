-- Ends one instance that has no key and no parent, with a result: what commit.sql does of it, for a transactional step.
--
-- It saves what commit.sql costs before its first row, which a group shares and a step's own transaction has to bear alone.
-- Parameters: id, rev, worker: the claim; mark (text): of the transaction; state (null: unchanged), result (null: none);
--   keep (seconds, null: for ever); ran (null: the row's step), tried, took: of the run.
-- Locks: the row.
-- Index: primary key.
-- Guard: as in commit.sql, the claim's rev and worker, and the mark: else it fails.
-- Answer: as commit.sql's.
WITH o AS MATERIALIZED (
    SELECT %(id)s::bigint AS id, %(mark)s::text AS mark
),
ended AS (
    DELETE FROM {schema}.instances i
    USING o
    WHERE i.id >= o.id AND i.id <= o.id AND i.rev = %(rev)s::bigint AND i.worker = %(worker)s::int
    RETURNING i.id, i.rev + 1 AS rev, coalesce(%(state)s::jsonb, i.state) AS state, i.inserted_at, i.lane, i.crashes,
        i.priority, i.key, i.scope, i.inbox, i.watched, i.parent_id, i.parent_spawn, i.spawn, i.step
),
buried AS (
    INSERT INTO {schema}.finished (
        id, rev, inserted_at, finished_at, expires_at, bucket, lane, worker, attempt, crashes, status, priority, step,
        key, state, result, took, scope, parent_id, parent_spawn, spawn, inbox
    )
    SELECT e.id, e.rev, e.inserted_at, {clock}, x.expires_at,
        {schema}.bucket_of(%(keep)s::double precision, x.expires_at), e.lane, %(worker)s::int, %(tried)s::int, e.crashes,
        6, e.priority, coalesce(%(ran)s::text, e.step), e.key, e.state, %(result)s::jsonb, %(took)s::real, e.scope,
        e.parent_id, e.parent_spawn, e.spawn, CASE WHEN e.rev < 0 THEN x.inbox END
    FROM ended e
    CROSS JOIN LATERAL (
        SELECT coalesce({clock} + make_interval(secs => %(keep)s::double precision), 'infinity') AS expires_at,
            CASE WHEN e.inbox IS NOT NULL THEN {schema}.empty_inbox(e.id) END AS inbox
    ) x
),
told AS (
    SELECT pg_notify('{channel}', 'e:' || e.id) FROM ended e WHERE e.watched
)
SELECT e.id, e.rev, NULL::int FROM ended e
UNION ALL
SELECT count(*), -2, NULL FROM told HAVING count(*) > 0
UNION ALL
SELECT CASE WHEN e.id IS NULL THEN ('claim lost: ' || o.id)::bigint ELSE ('mark lost: ' || o.id)::bigint END, -4, NULL
FROM o
LEFT JOIN ended e ON e.id = o.id
WHERE o.mark IS NOT NULL AND (e.id IS NULL OR coalesce(current_setting('gen_durable.step', true), '') <> o.mark)
