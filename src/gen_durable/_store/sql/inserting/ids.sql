-- Draws ids in advance: for rows whose order of insertion is not the order that their ids are to have.
--
-- Parameters: count.
-- Locks: none.
SELECT nextval('{schema}.instances_id_seq') FROM generate_series(1, %(count)s::int)
