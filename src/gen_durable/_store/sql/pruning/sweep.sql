-- Deletes a bounded batch of expired terminal rows that no partition's drop will take, with their history.
--
-- Parameters: batch (rows at most of each kind).
-- Locks: the terminal rows and the reservations of keys, SKIP LOCKED, in order of expiry; their history's rows. A child
--   whose parent has not gone on from its join stays.
-- Index: finished_swept_expires, finished_default_expires, instances_reserved, transitions_instance, the primary
--   key; see claim.sql for the form of the condition.
-- Guard: nothing else writes a terminal row.
WITH gone AS (
    DELETE FROM {schema}.finished_swept f
    WHERE f.ctid = ANY (ARRAY(
        SELECT s.ctid FROM {schema}.finished_swept s
        WHERE s.expires_at <= {clock} AND (
            s.parent_id IS NULL OR NOT EXISTS (
                SELECT 1 FROM {schema}.instances p
                WHERE p.id = ANY (ARRAY[s.parent_id]) AND p.spawn = ANY (ARRAY[s.parent_spawn])
                    AND p.children_left IS NOT NULL
            )
        )
        ORDER BY s.expires_at LIMIT %(batch)s::int FOR UPDATE SKIP LOCKED
    ))
    RETURNING f.id
),
lost AS (
    DELETE FROM {schema}.finished_default f
    WHERE f.ctid = ANY (ARRAY(
        SELECT s.ctid FROM {schema}.finished_default s
        WHERE s.expires_at <= {clock} AND (
            s.parent_id IS NULL OR NOT EXISTS (
                SELECT 1 FROM {schema}.instances p
                WHERE p.id = ANY (ARRAY[s.parent_id]) AND p.spawn = ANY (ARRAY[s.parent_spawn])
                    AND p.children_left IS NOT NULL
            )
        )
        ORDER BY s.expires_at LIMIT %(batch)s::int FOR UPDATE SKIP LOCKED
    ))
    RETURNING f.id
),
ids AS MATERIALIZED (
    SELECT g.id FROM gone g UNION ALL SELECT l.id FROM lost l
),
released AS (
    DELETE FROM {schema}.instances i
    WHERE i.ctid = ANY (ARRAY(
        SELECT r.ctid FROM {schema}.instances r
        WHERE r.status = 9 AND r.due_at <= {clock}
        ORDER BY r.due_at LIMIT %(batch)s::int FOR UPDATE SKIP LOCKED
    ))
    RETURNING 1
),
history AS (
    DELETE FROM {schema}.transitions t USING ids WHERE t.instance_id = ANY (ARRAY[ids.id]) RETURNING 1
),
kept AS (
    DELETE FROM {schema}.transitions_kept t USING ids WHERE t.instance_id = ANY (ARRAY[ids.id]) RETURNING 1
)
SELECT greatest((SELECT count(*) FROM ids), (SELECT count(*) FROM released)),
    (SELECT count(*) FROM history) + (SELECT count(*) FROM kept)
