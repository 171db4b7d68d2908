-- The lanes of some queues (one row of nulls where there is none), and a mark that changes when any lane is made, paused
-- or resumed, or gets a cap.
--
-- Parameters: queues (text[]).
-- Locks: none.
-- Index: none needed; one row per machine version and queue.
SELECT l.queue, l.machine, l.version, l.id, l.paused, {schema}.is_capped(l.queue), m.mark
FROM (
    SELECT concat_ws(':', max(a.id), sum(hashint4(a.id)::bigint) FILTER (WHERE a.paused),
        sum(hashint4(a.id)::bigint) FILTER (WHERE {schema}.is_capped(a.queue))) AS mark
    FROM {schema}.lanes a
) m
LEFT JOIN {schema}.lanes l ON l.queue = ANY (%(queues)s::text[])
ORDER BY l.id
