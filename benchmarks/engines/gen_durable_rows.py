"""SQL that makes many rows of a kind, out of the one that is there; ``$1`` is how many.

Statements run one after the other; those without ``$1`` make the table ready for the rows, or tidy up behind them.
"""

from __future__ import annotations

RETENTION_DAYS = 7

# Every second one has a deadline, a month away or more.
PARKED = (
    """
INSERT INTO gen_durable.instances (due_at, inserted_at, updated_at, lane, status, step, state, awaits)
SELECT CASE WHEN n % 2 = 0 THEN now() + make_interval(days => 30, secs => n) ELSE 'infinity' END, now(), now(),
    i.lane, 3, i.step, i.state, ARRAY['go']
FROM gen_durable.instances i, generate_series(1, $1::int) n
""",
    "UPDATE gen_durable.instances SET status = 3, awaits = ARRAY['go'], due_at = 'infinity' WHERE status = 0",
)

BLOCKED = (
    """
INSERT INTO gen_durable.instances (due_at, inserted_at, updated_at, lane, status, step, state, gate, own_gate, line)
SELECT i.due_at, now(), now(), i.lane, 5, i.step, i.state, i.gate, i.own_gate, i.line
FROM gen_durable.instances i, generate_series(1, $1::int)
""",
)

# As on a system that has ended so many, evenly, in the six days before; the partitions are those that it would have.
TERMINAL = (
    f"""
DO $$
BEGIN
    FOR days IN 1..{RETENTION_DAYS} LOOP
        UPDATE gen_durable.lanes SET retention = 86400 * days;
        PERFORM gen_durable.ensure_partitions();
    END LOOP;
END $$
""",
    f"""
INSERT INTO gen_durable.finished (id, rev, inserted_at, finished_at, expires_at, bucket, lane, worker, attempt,
    crashes, status, priority, step, state, took)
SELECT nextval(pg_get_serial_sequence('gen_durable.instances', 'id')), 2, e.at - interval '1 s', e.at,
    e.at + interval '{RETENTION_DAYS} days', ((e.at + interval '{RETENTION_DAYS} days') AT TIME ZONE 'UTC')::date,
    i.lane, 1, 0, 0, 6, 0, i.step, i.state, 0.00001
FROM gen_durable.instances i, generate_series(1, $1::int) n,
    LATERAL (SELECT now() - interval '{RETENTION_DAYS - 1} days' * (1 - n / $1::float8)) e (at)
""",
    "DELETE FROM gen_durable.instances",
)

WAITING = """
SELECT coalesce(sum(n), 0), coalesce(sum(n) - max(n), 0)
FROM (SELECT count(*) AS n FROM gen_durable.instances WHERE status = 5 GROUP BY xmin::text) AS written
"""
"""Counts those that wait for a limit, and those of them that were written by another transaction than most: since."""
