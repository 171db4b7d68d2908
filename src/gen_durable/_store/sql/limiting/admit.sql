-- Brings blocked rows forward, as far as their limits have room: to be claimed, or as claims at once.
--
-- Parameters: given, the lines to look at (text[]; null: those that were knocked at, and those whose time has come); most
--   (lines, and rows, at most); worker, and pools, a JSON list of {lane, pool, room}: the places that the worker keeps for
--   rows of these lanes (null: none); report, whether to answer with each line's state.
-- Locks: the lines FOR UPDATE SKIP LOCKED, then rows FOR NO KEY UPDATE SKIP LOCKED, then the lines of concurrency keys of
--   rows that need both, SKIP LOCKED. New lines are made in their order. It waits for nobody but one who makes the same
--   line just now.
-- Index: lines' and knocks' primary keys, lines_wake, instances_line, instances_holders, instances_drawn, primary key.
-- Guard: the line's lock; what it holds is counted under it, by the rows. A given line that somebody else has locked is
--   knocked at, for the next pass.
-- Answer: rows by their first column: 'claim' (what claim.sql answers, from the seventh column on), 'queue' (name, how many
--   of its rows are runnable now), 'line' (name, admitted, holding, slots or tokens left, and where rows wait the seconds
--   until the next fits), 'wake' (seconds until somebody is to look again).
WITH passed AS MATERIALIZED (
    SELECT a.*
    FROM {schema}.admit(
        {clock}, %(given)s::text[], %(most)s::int, %(worker)s::int, %(pools)s::jsonb, %(report)s::boolean
    ) a
),
told AS MATERIALIZED (
    SELECT count(pg_notify('{channel}', 'q:' || p.name)) AS told FROM passed p WHERE p.what = 'queue'
)
SELECT p.* FROM passed p CROSS JOIN told t WHERE t.told >= 0
