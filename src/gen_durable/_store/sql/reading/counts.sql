-- How many instances there are, by queue, machine and status.
--
-- Locks: none.
-- Index: none; it reads both tables whole: for people, not for services.
SELECT v.queue, v.machine, v.version, v.status, count(*)
FROM {schema}.all_instances v
GROUP BY 1, 2, 3, 4
ORDER BY 1, 2, 3, 4
