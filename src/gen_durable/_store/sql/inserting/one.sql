-- Inserts one instance that is due now and has neither a key nor a limit nor a parent, and of which nobody is told.
-- What "plain" does of one such row, at two thirds of its cost to the server; it must come to the same.
--
-- Parameters: state; lane; step; priority.
-- Locks: the new row, of which nobody else knows.
-- Index: the primary key of lanes.
-- Guard: none is needed, for without a key nothing collides.
-- Answer: (id); nothing where the lane is unknown.
INSERT INTO {schema}.instances (due_at, inserted_at, updated_at, lane, status, priority, step, state)
SELECT {clock}, {clock}, {clock}, l.id, 0, %(priority)s::smallint, %(step)s::text, %(state)s::jsonb
FROM {schema}.lanes l
WHERE l.id = %(lane)s::int
RETURNING id
