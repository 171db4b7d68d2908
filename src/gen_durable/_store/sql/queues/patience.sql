-- Sets for how long this transaction waits for a lock.
--
-- Parameters: seconds.
-- Locks: none.
SELECT set_config('lock_timeout', ((%(seconds)s::float8 * 1000)::int)::text, true)
