-- Sets a session for transactional steps up, where it is the client's own: behind a pooler nothing may be set.
--
-- Parameters: pid (int), the server process that the client was told of; names, values (text[], pairwise): the settings.
-- Locks: none.
-- Guard: behind a pooler the process is another one, or has been by the time of the first transaction.
-- Answer: whether it is the client's own.
SELECT pg_backend_pid() = %(pid)s::int, CASE WHEN pg_backend_pid() = %(pid)s::int THEN (
    SELECT count(set_config(s.name, s.value, false)) FROM unnest(%(names)s::text[], %(values)s::text[]) AS s (name, value)
) END
