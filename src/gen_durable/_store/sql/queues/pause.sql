-- Pauses or resumes a queue for the whole cluster: no claim that starts after this commit takes a row of a paused queue.
--
-- Parameters: queue; paused.
-- Locks: the queue's row, then its lanes; see the function.
-- Index: queues' primary key, lanes' unique constraint.
-- Answer: how many lanes the queue has.
SELECT {schema}.pause_queue(%(queue)s::text, %(paused)s::boolean)
