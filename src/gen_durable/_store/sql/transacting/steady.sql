-- Makes the rest of a step's transaction plan as the engine's own sessions do: when the step's code has ended.
--
-- Parameters: names, values (text[], pairwise): the settings.
-- Locks: none.
-- Guard: they end with the transaction; the next step's code sees the session's own again.
SELECT count(set_config(s.name, s.value, true)) FROM unnest(%(names)s::text[], %(values)s::text[]) AS s (name, value)
