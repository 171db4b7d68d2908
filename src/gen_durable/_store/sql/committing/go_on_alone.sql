-- Moves one instance, which has no parent and has waited for nothing, to its next step under the same claim: what
-- commit.sql does of it, for a transactional step. See end_alone.sql.
--
-- Parameters: id, rev, worker: the claim; mark (text): of the transaction; step; state (null: unchanged); error (null:
--   none); kind, ran, tried, took: of the run; history: 0 off, 1 steps, 2 with the state.
-- Locks: the row.
-- Index: primary key. It changes no indexed column (HOT).
-- Guard: as in commit.sql, the claim's rev and worker, and the mark: else it fails.
-- Answer: as commit.sql's.
WITH o AS MATERIALIZED (
    SELECT %(id)s::bigint AS id, %(mark)s::text AS mark
),
went_on AS (
    UPDATE {schema}.instances i
    SET step = %(step)s::text, state = coalesce(%(state)s::jsonb, i.state), rev = i.rev + 1, attempt = 0, crashes = 0,
        error = %(error)s::jsonb, awaits = NULL, children_left = NULL, children_spare = NULL, cancel_rest = NULL,
        updated_at = {clock}
    FROM o
    WHERE i.id >= o.id AND i.id <= o.id AND i.rev = %(rev)s::bigint AND i.worker = %(worker)s::int
    RETURNING i.id, i.rev, i.state
),
noted AS (
    INSERT INTO {schema}.transitions (instance_id, seq, at, worker, attempt, outcome, took, step, error, state)
    SELECT w.id, w.rev, {clock}, %(worker)s::int, %(tried)s::int, %(kind)s::smallint, %(took)s::real, %(ran)s::text,
        %(error)s::jsonb, CASE WHEN %(history)s::int = 2 THEN w.state END
    FROM went_on w
    WHERE %(history)s::int > 0
)
SELECT w.id, w.rev, NULL::int FROM went_on w
UNION ALL
SELECT CASE WHEN w.id IS NULL THEN ('claim lost: ' || o.id)::bigint ELSE ('mark lost: ' || o.id)::bigint END, -4, NULL
FROM o
LEFT JOIN went_on w ON w.id = o.id
WHERE o.mark IS NOT NULL AND (w.id IS NULL OR coalesce(current_setting('gen_durable.step', true), '') <> o.mark)
