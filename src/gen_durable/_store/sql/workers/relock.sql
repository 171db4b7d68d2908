-- Takes a worker's session lock again, on a new connection.
--
-- Parameters: worker.
-- Locks: the advisory lock of the worker, for the session; false while a dead session of its own still holds it.
SELECT pg_try_advisory_lock({lockspace}, %(worker)s::int)
