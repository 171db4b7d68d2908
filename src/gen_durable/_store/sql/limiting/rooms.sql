-- How many more rows of queues with a cap may be claimed, before a claim in the same transaction.
--
-- Parameters: queues (text[]).
-- Locks: the caps of these queues, in the order of their names, until the end of the transaction: so one worker at a time
--   counts and claims. What it claims then it does not wait for.
-- Index: limits' primary key, instances_claims (what executes in the whole cluster).
-- Guard: the caps' locks; it counts under them.
-- Answer: (queue, room) of each queue that has a cap; the room is negative where the cap was lowered.
SELECT r.queue, r.room FROM {schema}.rooms_of(%(queues)s::text[]) r
