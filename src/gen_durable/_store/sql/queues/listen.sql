-- Listens for wake-ups; a session's own, so never behind a transaction pooler.
--
-- Locks: none.
LISTEN {channel}
