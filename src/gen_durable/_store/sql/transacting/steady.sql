-- Makes the rest of a step's transaction plan as the engine's own sessions do: when the step's code has ended.
--
-- Locks: none.
-- Guard: the settings end with the transaction; the next step's code sees the session's own again. Not the search path: a
--   deferred trigger of the user's may need it.
SELECT num_nonnulls(
    set_config('plan_cache_mode', 'force_generic_plan', true), set_config('jit', 'off', true),
    set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
    set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
    set_config('enable_sort', 'off', true), set_config('enable_incremental_sort', 'off', true),
    set_config('enable_indexscan', 'on', true), set_config('enable_nestloop', 'on', true),
    set_config('enable_tidscan', 'on', true), set_config('lock_timeout', '10s', true)
)
