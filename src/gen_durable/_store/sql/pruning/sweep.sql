-- Deletes a bounded batch of expired terminal rows that no partition's drop will take, with their history.
--
-- Parameters: batch (rows at most of each kind).
-- Locks: the terminal rows, SKIP LOCKED, in order of expiry; their history's rows.
-- Index: finished_swept_expires, finished_default_expires, transitions_instance; see claim.sql for the form of the condition.
-- Guard: nothing else writes a terminal row.
WITH gone AS (
    DELETE FROM {schema}.finished_swept f
    WHERE f.ctid = ANY (ARRAY(
        SELECT s.ctid FROM {schema}.finished_swept s
        WHERE s.expires_at <= {clock}
        ORDER BY s.expires_at LIMIT %(batch)s::int FOR UPDATE SKIP LOCKED
    ))
    RETURNING f.id
),
lost AS (
    DELETE FROM {schema}.finished_default f
    WHERE f.ctid = ANY (ARRAY(
        SELECT s.ctid FROM {schema}.finished_default s
        WHERE s.expires_at <= {clock}
        ORDER BY s.expires_at LIMIT %(batch)s::int FOR UPDATE SKIP LOCKED
    ))
    RETURNING f.id
),
ids AS MATERIALIZED (
    SELECT g.id FROM gone g UNION ALL SELECT l.id FROM lost l
),
history AS (
    DELETE FROM {schema}.transitions t USING ids WHERE t.instance_id = ANY (ARRAY[ids.id]) RETURNING 1
),
kept AS (
    DELETE FROM {schema}.transitions_kept t USING ids WHERE t.instance_id = ANY (ARRAY[ids.id]) RETURNING 1
)
SELECT (SELECT count(*) FROM ids), (SELECT count(*) FROM history) + (SELECT count(*) FROM kept)
