-- The clock that decides what is due.
--
-- Locks: none.
SELECT {clock}
