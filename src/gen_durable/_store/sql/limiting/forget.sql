-- Forgets lines that nobody has used for a minute.
--
-- Parameters: after, the line to begin behind; batch (lines at most).
-- Locks: the lines FOR UPDATE SKIP LOCKED.
-- Index: lines' primary key, instances_line, instances_holders, instances_drawn.
-- Guard: the line's lock: who looks at a line meanwhile passes it by, and comes again. A line that is missing is made by
--   the next look; a bucket is forgotten when it is full.
-- Answer: how many lines were looked at, and the last of them.
WITH seen AS MATERIALIZED (
    SELECT l.line, l.made_at, l.wake_at, l.tokens, l.filled_at
    FROM {schema}.lines l
    WHERE l.line > %(after)s::text
    ORDER BY l.line
    LIMIT %(batch)s::int
    FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM {schema}.lines l
    USING seen s
    LEFT JOIN {schema}.limits c ON c.kind = 'rate' AND s.line LIKE 'r%%' AND c.name = {schema}.limit_of(s.line)
    WHERE l.line = ANY (ARRAY[s.line]) AND s.made_at < {clock} - interval '1 minute' AND s.wake_at IS NULL
        AND (s.tokens IS NULL OR s.tokens + extract(epoch FROM {clock} - s.filled_at) * c.amount / c.per >= c.burst)
        AND NOT EXISTS (SELECT 1 FROM {schema}.instances i WHERE i.line = s.line AND i.status = 5)
        AND NOT EXISTS (
            SELECT 1 FROM {schema}.instances i WHERE i.gate = s.line AND i.gate IS NOT NULL AND i.status IN (0, 2)
        )
        AND NOT EXISTS (
            SELECT 1 FROM {schema}.instances i WHERE i.rate = s.line AND i.rate IS NOT NULL AND i.status = 0
        )
)
SELECT count(*), max(s.line) FROM seen s
