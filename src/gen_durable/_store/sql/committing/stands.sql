-- What the row of a claim holds: of one that went on, to tell which run's outcome that was.
--
-- Parameters: id, rev, worker: the claim.
-- Locks: none.
-- Index: primary key; see claim.sql for the form of the condition.
SELECT i.step, i.state, i.gate, i.rate
FROM {schema}.instances i
WHERE i.id = ANY (ARRAY[%(id)s::bigint]) AND i.rev = %(rev)s::bigint AND i.worker = %(worker)s::int
