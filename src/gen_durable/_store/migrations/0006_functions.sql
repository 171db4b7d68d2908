-- What those who call from SQL need: the machines that engines have registered. The functions themselves are made after the
-- migrations, from functions/*.sql, and again whenever their text is another: see ADR 19.

-- What a machine's class says, as far as an insert needs it.
CREATE TABLE {schema}.machines (
    name       text             NOT NULL,
    version    int              NOT NULL,
    queue      text             NOT NULL,
    step       text             NOT NULL,  -- the first one
    priority   smallint         NOT NULL,
    retention  double precision,           -- seconds that a terminal row stays; null: for ever
    history    boolean          NOT NULL,  -- whether its engine keeps any
    max_bytes  int              NOT NULL,  -- of a state or a payload
    fields     jsonb            NOT NULL,  -- by name: {"required": whether it has no default, "json": the types it takes}
    -- "own", "gate", "rate" and "weight", each {"value": a line or a number} or {"computed": true}: a function of Python's
    -- says it. Without "gate" the first step keeps to its instance's own.
    limits     jsonb            NOT NULL,
    changed_at timestamptz      NOT NULL,
    PRIMARY KEY (name, version)
);

ALTER TABLE {schema}.migrations ADD COLUMN functions text;  -- what the functions that were made with it were made from
