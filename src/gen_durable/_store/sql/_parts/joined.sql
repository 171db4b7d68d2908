-- What the ends of children do to their parents: a join counts only while its parent waits for this very spawn, and opens
-- when as many have ended as it waits for, or too few are left. Part of the committing statements, behind "ended".
counted AS MATERIALIZED (
    SELECT e.parent_id, e.parent_spawn, count(*) AS ends, count(*) FILTER (WHERE e.kind = 3) AS good
    FROM ended e
    WHERE e.parent_id IS NOT NULL
    GROUP BY 1, 2
),
joined AS (
    UPDATE {schema}.instances p
    SET status = CASE
            WHEN {schema}.join_opens(p.children_left, p.children_spare, c.ends, c.good) THEN {schema}.ready(p.line)
            ELSE 4
        END,
        due_at = CASE
            WHEN {schema}.join_opens(p.children_left, p.children_spare, c.ends, c.good) THEN {clock} ELSE p.due_at
        END,
        children_left = p.children_left - CASE WHEN p.children_spare IS NULL THEN c.ends ELSE c.good END,
        children_spare = p.children_spare - (c.ends - c.good)
    FROM counted c
    WHERE p.id = ANY (ARRAY[c.parent_id]) AND p.status = 4 AND p.spawn = ANY (ARRAY[c.parent_spawn])
    RETURNING p.id, p.status, p.lane, p.line
),
