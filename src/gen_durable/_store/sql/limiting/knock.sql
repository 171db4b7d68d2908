-- Knocks at every line of some limits in which rows wait, since the limits have changed, and tells the workers.
--
-- Parameters: kinds, names (text[]): the limits, pairwise, of keys and of rates.
-- Locks: none; knocks are new rows.
-- Index: none for the lines of a name, which it reads through; instances_line.
-- Guard: to be run with the change, and again when that has committed. A look that is under way then, and has seen the
--   limit as it was, has either made its line by now, or the knock that it answers is still to be seen: both are read.
-- Answer: how many lines.
WITH line AS MATERIALIZED (
    SELECT l.line FROM {schema}.lines l
    UNION
    SELECT k.line FROM {schema}.knocks k
),
knocked AS (
    INSERT INTO {schema}.knocks (line)
    SELECT n.line
    FROM unnest(%(kinds)s::text[], %(names)s::text[]) AS c (kind, name)
    JOIN line n ON left(n.line, 1) = left(c.kind, 1) AND {schema}.limit_of(n.line) = c.name
    WHERE EXISTS (SELECT FROM {schema}.instances i WHERE i.line = n.line AND i.status = 5)
    RETURNING line
)
SELECT k.lines, pg_notify('{channel}', 'k:')
FROM (SELECT count(*) AS lines FROM knocked) k
WHERE k.lines > 0
