"""Decay: the rate of jobs and chains beside many rows that have ended or wait, or with bad statistics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, LiteralString

import psycopg

from benchmarks.agents import AgentFailed
from benchmarks.samples import Sample
from benchmarks.workloads.bench import Bench
from benchmarks.workloads.rates import in_turns, run_all

WITHOUT_AUTOVACUUM: LiteralString = """
DO $$
DECLARE
    name regclass;
BEGIN
    FOR name IN SELECT relid FROM pg_stat_user_tables JOIN pg_class ON oid = relid WHERE relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = false)', name);
    END LOOP;
END $$
"""
ANALYZED: LiteralString = """
SELECT coalesce(string_agg(relid::regclass::text, ', '), '') FROM pg_stat_user_tables
WHERE autoanalyze_count > 0 OR analyze_count > %s
"""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What lies in the database: so many ``rows`` of a kind, made of one ``seed``, of which some stay unfinished."""

    rows: str
    seed: str
    staying: int = 0


TERMINAL = Beside(rows="terminal", seed="noop")
PARKED = Beside(rows="parked", seed="waiter")
# One of them holds the key for which the others wait, and never ends.
BLOCKED = Beside(rows="blocked", seed="crowd", staying=1)


def beside(bench: Bench, *, what: Beside, rows: int, kind: str, count: int, pairs: int) -> Sample:
    """The share of the rate beside no rows that is left beside so many."""
    jobs = partial(_beside, bench, what=what, kind=kind, count=count)
    return _share(in_turns(partial(jobs, rows=rows), partial(jobs, rows=0), pairs), rows)


def statistics(bench: Bench, *, empty: bool, count: int, pairs: int) -> Sample:
    """The share of the rate with good statistics that is left without any, or with those of the ``empty`` tables."""
    unknown, known = partial(_unknown, bench, empty=empty, count=count), partial(_known, bench, count=count)
    return _share(in_turns(unknown, known, pairs), count)


def _share(sample: Sample, rows: int) -> Sample:
    extras = dict(sample.extras)
    return Sample(extras.pop("share"), rows, {"rate": sample.value, **extras})


def _beside(bench: Bench, *, what: Beside, rows: int, kind: str, count: int) -> Sample:
    workload = f"K.{what.rows}"
    stock = bench.stock(workload, what.rows, what.seed, rows)
    with bench.fresh(workload, template=stock) as agents:
        agents.call("prepare", kind=kind, count=count, ready=True)
        bench.vacuum()
        with _watching(bench) as connection:
            return run_all(bench, agents, connection, kind=kind, count=count, procs=1, staying=what.staying)


def _known(bench: Bench, *, count: int) -> Sample:
    with bench.fresh("K.stats") as agents:
        agents.call("prepare", kind="noop", count=count)
        bench.vacuum()
        with _watching(bench) as connection:
            return run_all(bench, agents, connection, kind="noop", count=count, procs=1)


def _unknown(bench: Bench, *, empty: bool, count: int) -> Sample:
    with bench.fresh("K.stats") as agents:
        agents.call("prepare", kind="noop", count=0)
        with bench.connect() as connection:
            connection.execute(WITHOUT_AUTOVACUUM)
            if empty:
                connection.execute("ANALYZE")
        agents.call("prepare", kind="noop", count=count, ready=True)
        with _watching(bench) as connection:
            sample = run_all(bench, agents, connection, kind="noop", count=count, procs=1)
        with bench.connect() as connection:
            row = connection.execute(ANALYZED, (1 if empty else 0,)).fetchone()
        if row is None or row[0]:
            raise AgentFailed(f"there are to be no later statistics, and {row and row[0]} got some: run it again")
        return sample


def _watching(bench: Bench) -> psycopg.Connection[Any]:
    """A session whose looks at what is left do not walk all rows, whatever the statistics."""
    connection = bench.connect()
    connection.execute("SET enable_seqscan = off")
    return connection
