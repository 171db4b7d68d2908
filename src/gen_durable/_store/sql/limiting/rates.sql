-- The rates that there are: the name and the burst of each.
--
-- Locks: none.
-- Index: limits' primary key.
SELECT c.name, c.burst FROM {schema}.limits c WHERE c.kind = 'rate'
