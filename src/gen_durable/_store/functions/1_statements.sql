-- The store's own statements, callable from the functions below. The text of each is put in from its file, word for word; a
-- test holds the names and the order of their parameters to those of the statement.

CREATE OR REPLACE FUNCTION {schema}.run_insert(worker int, rows text, soon double precision, notify boolean)
RETURNS TABLE (place bigint, id bigint, told bigint, born_at timestamptz) LANGUAGE sql VOLATILE AS $statement$
{statement:inserting/insert}
$statement$;

CREATE OR REPLACE FUNCTION {schema}.run_replace("row" text, key text, soon double precision, notify boolean)
RETURNS TABLE (id bigint, told bigint) LANGUAGE sql VOLATILE AS $statement$
{statement:inserting/replace}
$statement$;

CREATE OR REPLACE FUNCTION {schema}.run_holders(keys text)
RETURNS TABLE (key text, id bigint, status smallint) LANGUAGE sql VOLATILE AS $statement$
{statement:inserting/holders}
$statement$;

CREATE OR REPLACE FUNCTION {schema}.run_lanes(lanes text)
RETURNS TABLE (queue text, machine text, version int, id int, made bigint) LANGUAGE sql VOLATILE AS $statement$
{statement:queues/lanes}
$statement$;

CREATE OR REPLACE FUNCTION {schema}.run_send(
    name text, id bigint, key text, payload text, dedup text, worker int, lanes int[], notify boolean
)
RETURNS TABLE (
    target bigint, queue text, fresh boolean, woke boolean, told bigint, knocked boolean,
    c_id bigint, c_rev bigint, c_lane int, c_step text, c_state jsonb, c_attempt int, c_crashes smallint,
    c_priority smallint, c_key text, c_due_at timestamptz, c_inserted_at timestamptz, c_parent_id bigint, c_waits jsonb,
    c_gate text, c_own_gate text, c_rate text
) LANGUAGE sql VOLATILE AS $statement$
{statement:signalling/send}
$statement$;

CREATE OR REPLACE FUNCTION {schema}.run_cancel(ids text, reason text, keep boolean)
RETURNS TABLE (id bigint, worker int, machine text, lane int, rev bigint) LANGUAGE sql VOLATILE AS $statement$
{statement:steering/cancel}
$statement$;

CREATE OR REPLACE FUNCTION {schema}.run_descend(parents text, spawn int)
RETURNS TABLE (id bigint) LANGUAGE sql VOLATILE AS $statement$
{statement:steering/descend}
$statement$;

CREATE OR REPLACE FUNCTION {schema}.run_retry(id bigint)
RETURNS TABLE (retried bigint, lane int, told bigint) LANGUAGE sql VOLATILE AS $statement$
{statement:steering/retry}
$statement$;
