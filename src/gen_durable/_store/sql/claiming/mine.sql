-- The claims that the table says a worker holds: to find those whose claim's answer was lost on the way.
--
-- Parameters: worker.
-- Locks: none.
-- Index: instances_claims.
SELECT i.id, i.rev FROM {schema}.instances i WHERE i.status = 2 AND i.worker = %(worker)s::int
