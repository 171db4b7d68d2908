-- A page of instances, newest first, by keyset.
--
-- Parameters: machine, queue, key_prefix (null: any), statuses (smallint[], null: any), before (id, null: from the newest),
--   limit.
-- Locks: none.
-- Index: both tables' index on id, read backwards; filters are applied on the way. Each table gives a page of its own,
--   because over the view the order would be made by sorting everything; "before" is not "IS NULL OR", so that the walk
--   starts there. The live rows' walk ends where the page of ended ones does, so it passes few reservations of keys.
WITH ended AS MATERIALIZED (
    SELECT f.id, l.machine, l.version, l.queue, f.step, f.status, f.priority, f.attempt, f.crashes, f.key, f.state,
        f.result, f.error, f.worker, f.rev, NULL::timestamptz AS due_at, f.inserted_at, f.finished_at AS updated_at,
        f.finished_at, NULL::text[] AS awaits, NULL::int AS children_left, f.parent_id
    FROM {schema}.finished f
    CROSS JOIN LATERAL (SELECT n.machine, n.version, n.queue FROM {schema}.lanes n WHERE n.id = f.lane OFFSET 0) l
    WHERE f.id < coalesce(%(before)s::bigint, 9223372036854775807)
        AND (%(machine)s::text IS NULL OR l.machine = %(machine)s::text)
        AND (%(queue)s::text IS NULL OR l.queue = %(queue)s::text)
        AND (%(statuses)s::smallint[] IS NULL OR f.status = ANY (%(statuses)s::smallint[]))
        AND (%(key_prefix)s::text IS NULL OR starts_with(f.key, %(key_prefix)s::text))
    ORDER BY f.id DESC
    LIMIT %(limit)s::int
),
live AS MATERIALIZED (
    SELECT i.id, l.machine, l.version, l.queue, i.step, i.status, i.priority, i.attempt, i.crashes, i.key, i.state,
        NULL::jsonb AS result, i.error, i.worker, i.rev, nullif(i.due_at, 'infinity') AS due_at, i.inserted_at,
        i.updated_at, NULL::timestamptz AS finished_at, CASE WHEN i.status = 3 THEN i.awaits END AS awaits,
        CASE WHEN i.status = 4 THEN i.children_left END AS children_left, i.parent_id
    FROM {schema}.instances i
    CROSS JOIN LATERAL (SELECT n.machine, n.version, n.queue FROM {schema}.lanes n WHERE n.id = i.lane OFFSET 0) l
    WHERE i.status < 9 AND i.id < coalesce(%(before)s::bigint, 9223372036854775807)
        AND i.id > coalesce((SELECT min(e.id) FROM ended e HAVING count(*) = %(limit)s::int), 0)
        AND (%(machine)s::text IS NULL OR l.machine = %(machine)s::text)
        AND (%(queue)s::text IS NULL OR l.queue = %(queue)s::text)
        AND (%(statuses)s::smallint[] IS NULL OR i.status = ANY (%(statuses)s::smallint[]))
        AND (%(key_prefix)s::text IS NULL OR starts_with(i.key, %(key_prefix)s::text))
    ORDER BY i.id DESC
    LIMIT %(limit)s::int
)
SELECT * FROM live
UNION ALL
SELECT * FROM ended
ORDER BY 1 DESC
LIMIT %(limit)s::int
