-- Which outcomes the history proves: to resolve a commit whose answer never came, of rows that have gone on since.
--
-- Parameters: worker; claims, a JSON list of {id, rev}: the claims that the outcomes were committed under.
-- Locks: none.
-- Index: transitions_instance of each partition; see claim.sql for the form of the condition.
-- Answer: id and rev of those that are there. Where no history is kept there is no proof.
SELECT c.id, c.rev
FROM jsonb_to_recordset(%(claims)s::jsonb) AS c (id bigint, rev bigint)
JOIN {schema}.transitions t ON t.instance_id = ANY (ARRAY[c.id]) AND t.seq = c.rev + 1 AND t.worker = %(worker)s::int
