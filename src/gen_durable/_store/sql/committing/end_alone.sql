-- Ends one instance that has no key and no parent, with a result: what commit.sql does of it, for a transactional step.
--
-- It saves what commit.sql costs before its first row, which a group shares and a step's own transaction has to bear alone:
-- so there is one part that deletes, one that inserts, and no more.
-- Parameters: id, rev, worker: the claim; mark (text): of the transaction; state (null: unchanged), result (null: none);
--   keep (seconds, null: for ever); ran (null: the row's step), tried, took: of the run.
-- Locks: the row.
-- Index: primary key.
-- Guard: as in commit.sql, the claim's rev and worker, and the mark: else it fails.
-- Answer: as commit.sql's.
WITH ended AS (
    DELETE FROM {schema}.instances i
    WHERE i.id = %(id)s::bigint AND i.rev = %(rev)s::bigint AND i.worker = %(worker)s::int
    RETURNING i.id, i.rev + 1 AS rev, coalesce(%(state)s::jsonb, i.state) AS state, i.inserted_at, i.lane, i.crashes,
        i.priority, i.key, i.scope, i.inbox, i.watched, i.parent_id, i.parent_spawn, i.spawn, i.step
)
INSERT INTO {schema}.finished (
    id, rev, inserted_at, finished_at, expires_at, bucket, lane, worker, attempt, crashes, status, priority, step, key,
    state, result, took, scope, parent_id, parent_spawn, spawn, inbox
)
SELECT CASE
        -- Of a column, so that it is no constant: that would fail already when the statement is planned.
        WHEN e.id IS NULL THEN ('claim lost: ' || coalesce(e.id, %(id)s::bigint))::bigint
        WHEN coalesce(current_setting('gen_durable.step', true), '') <> %(mark)s::text
            THEN ('mark lost: ' || e.id)::bigint
        ELSE e.id
    END,
    -- What tells others answers with an empty text, as nothing does.
    e.rev + CASE WHEN e.watched THEN length(pg_notify('{channel}', 'e:' || e.id)::text) ELSE 0 END,
    e.inserted_at, {clock}, x.expires_at, {schema}.bucket_of(%(keep)s::double precision, x.expires_at), e.lane,
    %(worker)s::int, %(tried)s::int, e.crashes, 6, e.priority, coalesce(%(ran)s::text, e.step), e.key, e.state,
    %(result)s::jsonb, %(took)s::real, e.scope, e.parent_id, e.parent_spawn, e.spawn,
    -- Emptied, and not kept: null in any case.
    CASE WHEN e.inbox IS NOT NULL AND {schema}.empty_inbox(e.id) IS NULL THEN NULL::jsonb END
FROM (
    SELECT coalesce({clock} + make_interval(secs => %(keep)s::double precision), 'infinity') AS expires_at
) x
LEFT JOIN ended e ON true
WHERE e.id IS NOT NULL OR %(mark)s::text IS NOT NULL
RETURNING id, rev, NULL::int
