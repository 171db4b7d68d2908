-- The lanes of some queues, and a mark that changes when any lane is made, paused or resumed.
--
-- Parameters: queues (text[]).
-- Locks: none.
-- Index: none needed; one row per machine version and queue.
SELECT l.queue, l.machine, l.version, l.id, l.paused, (
    SELECT concat_ws(':', max(a.id), sum(hashint4(a.id)::bigint) FILTER (WHERE a.paused)) FROM {schema}.lanes a
)
FROM {schema}.lanes l
WHERE l.queue = ANY (%(queues)s::text[])
ORDER BY l.id
