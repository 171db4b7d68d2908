-- Pauses or resumes a queue for the whole cluster: no claim that starts after this commit takes a row of a paused queue.
--
-- Parameters: queue; paused.
-- Locks: the queue's row, then its lanes.
-- Index: queues' primary key, lanes' unique constraint.
WITH q AS (
    INSERT INTO {schema}.queues (name, paused, paused_at)
    VALUES (%(queue)s::text, %(paused)s::boolean, CASE WHEN %(paused)s::boolean THEN {clock} END)
    ON CONFLICT (name) DO UPDATE SET paused = EXCLUDED.paused, paused_at = EXCLUDED.paused_at
    RETURNING name
),
l AS (
    UPDATE {schema}.lanes SET paused = %(paused)s::boolean FROM q WHERE queue = q.name RETURNING id
)
SELECT (SELECT count(*) FROM l), pg_notify('{channel}', 'q:' || q.name) FROM q
