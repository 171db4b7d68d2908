-- Asks for a notification at an instance's end.
--
-- Parameters: id.
-- Locks: the row; it waits for a commit in progress.
-- Index: the primary key. No indexed column changes (HOT).
-- Guard: the row's lock: a commit that ends it either comes first, and there is no row in the answer, or it tells.
UPDATE {schema}.instances SET watched = true WHERE id = %(id)s::bigint AND status < 9 RETURNING id
