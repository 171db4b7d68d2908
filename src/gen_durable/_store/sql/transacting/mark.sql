-- Marks and bounds the transaction of a transactional step, on a session that was handed in: the first statement in it.
--
-- Parameters: mark (text), the instance's id; idle (text), milliseconds that may pass between two statements.
-- Locks: none.
-- Guard: both end with the transaction, so commit.sql can tell whether it still is in the one that was begun.
SELECT set_config('gen_durable.step', %(mark)s::text, true),
    set_config('idle_in_transaction_session_timeout', %(idle)s::text, true)
