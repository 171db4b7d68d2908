-- Inserts one instance, as "one" does, as a claim of the worker that keeps a place for it.
--
-- Parameters: state; lane; step; priority; worker, the id of that worker.
-- Locks: the new row, of which nobody else knows.
-- Index: the primary keys of lanes, workers and limits.
-- Guard: it is inserted only where a claim would get it: see "insert". Else "plain" is to be asked.
-- Answer: (id, when it was inserted and due); nothing where it is not inserted.
INSERT INTO {schema}.instances (due_at, inserted_at, updated_at, lane, worker, status, priority, step, state)
SELECT {clock}, {clock}, {clock}, l.id, k.id, 2, %(priority)s::smallint, %(step)s::text, %(state)s::jsonb
FROM {schema}.lanes l, {schema}.workers k
WHERE l.id = %(lane)s::int AND NOT l.paused AND k.id = %(worker)s::int AND l.queue <> ALL ({part capped})
RETURNING id, due_at
