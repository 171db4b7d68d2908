-- Empties a schema for tests, so that the next test finds it as it was made: no rows, numbers from 1, the real time.
--
-- Parameters: none; it is a script.
-- Locks: whatever is there; it waits for nobody for longer than the session's lock_timeout.
-- Guard: where a worker is still registered, the last test has left something running: an error, and nothing is done.
DO $clean$
DECLARE
    part record;
BEGIN
    IF EXISTS (SELECT 1 FROM {schema}.workers) THEN
        RAISE EXCEPTION 'a worker is still registered in schema {schema}';
    END IF;
    FOR part IN
        SELECT c.relname AS name, c.relkind = 'S' AS counts,
            c.relispartition AND c.relname ~ '_[0-9]{8}$'
                AND right(c.relname, 8) > to_char({wall} + interval '40 days', 'YYYYMMDD') AS far
        FROM pg_class c
        WHERE c.relnamespace = '{schema}'::regnamespace AND c.relname NOT IN ('migrations', 'test_clock')
            AND (c.relkind IN ('r', 'p', 'S'))
        ORDER BY c.relispartition DESC, c.relname
    LOOP
        IF part.counts THEN
            EXECUTE format('ALTER SEQUENCE {schema}.%I RESTART', part.name);
        ELSIF part.far THEN  -- a test was in the far future, and has left its days
            EXECUTE format('DROP TABLE {schema}.%I', part.name);
        ELSE
            EXECUTE format('DELETE FROM {schema}.%I', part.name);
        END IF;
    END LOOP;
    UPDATE {schema}.test_clock SET ahead = make_interval();
END $clean$;
