-- In which lanes there still are due rows, after a claim that came back short: it has passed them by, since somebody had
-- locked them, or another worker was just claiming them. Nobody tells of them when they are free again.
--
-- Parameters: lanes (int[]).
-- Locks: none.
-- Index: instances_ready, once per lane.
-- Answer: the lanes.
SELECT w.lane
FROM unnest(%(lanes)s::int[]) AS w (lane)
CROSS JOIN LATERAL (
    SELECT FROM {schema}.instances i
    WHERE i.lane = w.lane AND i.status = 0
    ORDER BY i.priority, i.due_at, i.id
    LIMIT 1
) r
