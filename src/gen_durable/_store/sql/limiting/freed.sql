-- Knocks at lines in which a transactional step's commit frees slots: in its transaction, which may be long or serializable
-- and so must not look at lines itself.
--
-- Parameters: lines (text[]).
-- Locks: none; knocks are new rows.
-- Index: none.
-- Guard: the knocks are seen when the slots are free, at the commit; the worker looks then, else whoever looks next.
INSERT INTO {schema}.knocks (line) SELECT unnest(%(lines)s::text[])
