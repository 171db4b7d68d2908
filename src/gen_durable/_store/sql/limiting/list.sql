-- The limits, with how much of each is in use.
--
-- Parameters: most: what is counted stops there; and knocks beyond so many are not looked at.
-- Locks: none.
-- Index: limits' primary key; instances_holders, instances_drawn, instances_line, once for each line of a limit;
--   instances_claims and instances_ready for queues.
-- Answer: (kind, name, amount, per, burst, lines, holding, waiting): the lines in use; of a key what holds its slots, of a
--   rate what has its tokens and is not claimed yet, of a queue what executes; then what waits for it.
WITH line AS MATERIALIZED (
    SELECT n.line, CASE left(n.line, 1) WHEN 'c' THEN 'concurrency' ELSE 'rate' END AS kind,
        {schema}.limit_of(n.line) AS name
    FROM (
        SELECT l.line FROM {schema}.lines l
        UNION
        SELECT k.line FROM (SELECT o.line FROM {schema}.knocks o ORDER BY o.id LIMIT %(most)s::int) k
    ) n
)
SELECT c.kind, c.name, c.amount, c.per, c.burst, u.lines, h.holding, w.waiting
FROM {schema}.limits c
CROSS JOIN LATERAL (
    SELECT count(*) AS lines FROM line n WHERE n.kind = c.kind AND n.name = c.name
) u
CROSS JOIN LATERAL (
    SELECT CASE c.kind
        WHEN 'concurrency' THEN (
            SELECT count(*)
            FROM (
                SELECT FROM line n
                CROSS JOIN LATERAL (
                    SELECT FROM {schema}.instances i
                    WHERE i.gate = n.line AND i.gate IS NOT NULL AND i.status IN (0, 2) LIMIT %(most)s::int
                ) i
                WHERE n.kind = c.kind AND n.name = c.name
                LIMIT %(most)s::int
            ) s
        )
        WHEN 'rate' THEN (
            SELECT count(*)
            FROM (
                SELECT FROM line n
                CROSS JOIN LATERAL (
                    SELECT FROM {schema}.instances i
                    WHERE i.rate = n.line AND i.rate IS NOT NULL AND i.status = 0 LIMIT %(most)s::int
                ) i
                WHERE n.kind = c.kind AND n.name = c.name
                LIMIT %(most)s::int
            ) s
        )
        ELSE (
            SELECT count(*) FROM {schema}.instances i JOIN {schema}.lanes l ON l.id = i.lane
            WHERE i.status = 2 AND l.queue = c.name
        )
    END AS holding
) h
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN c.kind = 'queue' THEN (
            SELECT count(*)
            FROM (
                SELECT FROM {schema}.lanes l
                CROSS JOIN LATERAL (
                    SELECT FROM {schema}.instances i WHERE i.lane = l.id AND i.status = 0 LIMIT %(most)s::int
                ) i
                WHERE l.queue = c.name
                LIMIT %(most)s::int
            ) s
        )
        ELSE (
            SELECT count(*)
            FROM (
                SELECT FROM line n
                CROSS JOIN LATERAL (
                    SELECT FROM {schema}.instances i WHERE i.line = n.line AND i.status = 5 LIMIT %(most)s::int
                ) i
                WHERE n.kind = c.kind AND n.name = c.name
                LIMIT %(most)s::int
            ) s
        )
    END AS waiting
) w
WHERE c.amount IS NOT NULL
ORDER BY c.kind, c.name
