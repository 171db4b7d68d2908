-- The clock of a schema for tests: the wall clock and what tests have added to it. Made before the migrations, which are
-- then rendered with it ({clock}); a schema without it is a production schema, and can't get it any more.
CREATE TABLE {schema}.test_clock (
    ahead interval NOT NULL  -- in seconds, not in days: a day of summer time has 23 hours
);
INSERT INTO {schema}.test_clock (ahead) VALUES (make_interval());

-- STABLE, as statement_timestamp() is: an index condition on it is one value.
CREATE FUNCTION {schema}.clock() RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN {wall} + (SELECT c.ahead FROM {schema}.test_clock c);
END $$;
