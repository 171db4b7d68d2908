"""The engines that can be measured; to add one, add an entry here and a module in ``benchmarks/engines``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.engines.gen_durable_rows import BLOCKED, PARKED, RETENTION_DAYS, TERMINAL, WAITING

OWN = "gen_durable"
FLOOR = "floor"
FLOOR_PGBENCH = "floor_pgbench"
NOT_PEERS = (OWN, FLOOR, FLOOR_PGBENCH)
ALL = frozenset("ABCDEFGHIJKLMN") | {"B.step", "D.result", "E.idle", "F.large"}
COMMON = frozenset("ABCD")
"""What every engine has; E needs signals, F children with a join; G, H and N limits; I levels of history; J
transactional steps; K to M all of that.

``B.step`` is for an engine that has more than one way to go from a step to the next, and so runs ahead in ``B``;
``D.result`` for one whose caller can wait for a result; ``E.idle``, rows filled in by SQL, and ``F.large`` for this
engine alone."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the run has to know about an engine without importing it.

    ``done`` counts finished jobs, chains, or steps of chains where each is a row (``row_per_step``), ``left``
    the unfinished ones, cheaply. ``share`` scales the number of jobs or chains of a workload down for an
    engine that would need minutes for them; its rate does not suffer from that.
    """

    name: str
    module: str
    done: str
    left: str
    requirements: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 11)
    quick: bool = True
    """Whether a quick run measures it without being told to."""
    program: str = ""
    """One of PostgreSQL's own programs that it runs."""
    workloads: frozenset[str] = COMMON
    row_per_step: bool = False
    share: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings per workload, ``B`` or ``B.step``, whose own go first; ``*`` for all. The best that its documentation
    leads to."""
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """SQL that makes as many rows as ``$1`` says out of the one that is there: ``parked`` ones, ``blocked``,
    ``terminal``."""
    parked: str = ""
    """SQL that counts the parked ones."""
    waiting: str = ""
    """SQL that counts the blocked ones, and those of them that were written by another transaction than most: since."""

    @property
    def slow(self) -> bool:
        """Whether it needs smaller sizes; a quick run measures it only once."""
        return "A" in self.share

    def settings(self, workload: str) -> dict[str, Any]:
        """The settings of one workload."""
        merged: dict[str, Any] = {}
        for name in ("*", *reversed(_names(workload))):
            merged |= self.options.get(name, {})
        return merged

    def scale(self, workload: str) -> float:
        """The share of the jobs of one workload."""
        return next((self.share[name] for name in _names(workload) if name in self.share), 1.0)


def _names(workload: str) -> list[str]:
    """``B.step``, and ``B``, to which it belongs."""
    parts = workload.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


AWA_DONE = (
    "SELECT (SELECT coalesce(sum(completed_count), 0) FROM awa.receipt_completion_batches) "
    "+ (SELECT count(*) FROM awa.done_entries WHERE state = 'completed') "
    "+ (SELECT coalesce(sum(pruned_completed_count), 0) FROM awa.queue_terminal_rollups)"
)

ENTRIES = (
    Entry(
        name=OWN,
        module="benchmarks.engines.gen_durable",
        done="SELECT count(*) FROM gen_durable.finished WHERE status = 6",
        # A sum of two: each is an index's, however many rows wait beside them.
        left="SELECT (SELECT count(*) FROM gen_durable.instances WHERE status = 0) "
        "+ (SELECT count(*) FROM gen_durable.instances WHERE status = 2)",
        workloads=ALL,
        rows={"parked": PARKED, "blocked": BLOCKED, "terminal": TERMINAL},
        parked="SELECT count(*) FROM gen_durable.instances WHERE status = 3",
        waiting=WAITING,
        options={
            "B.step": {"run_ahead": False},
            "J": {"concurrency": 20},
            "K": {"retention": 86400.0 * RETENTION_DAYS},
            "K.blocked": {"drain_timeout": 1.0},
            "L": {"concurrency": 5},
            "M.executing": {"drain_timeout": 1.0},
            "N": {"drain_timeout": 1.0},  # the one that holds the crowd's key never ends
        },
    ),
    Entry(
        name=FLOOR,
        module="benchmarks.floor",
        done="SELECT count(*) FROM jobs WHERE status = 2",
        left="SELECT count(*) FROM jobs WHERE status <> 2",
        workloads=frozenset("ABC") | {"B.step"},
        options={"B.step": {"run_ahead": False}},
    ),
    Entry(
        name=FLOOR_PGBENCH,
        module="benchmarks.floor_pgbench",
        done="SELECT count(*) FROM jobs WHERE status = 2",
        left="SELECT count(*) FROM jobs WHERE status <> 2",
        workloads=frozenset("A"),
        program="pgbench",
    ),
    Entry(
        name="pgqueuer",
        module="benchmarks.engines.pgqueuer",
        requirements=("pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop"),
        done="SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'",
        left="SELECT count(*) FROM pgqueuer",
        row_per_step=True,
        share={"B": 0.25},
    ),
    Entry(
        name="procrastinate",
        module="benchmarks.engines.procrastinate",
        requirements=("procrastinate==3.10.0", "psycopg[binary]", "uvloop"),
        done="SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'",
        left="SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'",
        row_per_step=True,
        share={"A": 0.05, "B": 0.05, "C": 0.25},
    ),
    Entry(
        name="dbos",
        module="benchmarks.engines.dbos",
        requirements=("dbos==3.4.0",),
        done="SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'",
        left="SELECT count(*) FROM dbos.workflow_status WHERE status <> 'SUCCESS'",
        workloads=COMMON | {"D.result", "E", "F"},
        share={"A": 0.1, "B": 0.1, "C": 0.1, "F": 0.1},
        options={
            "*": {"threads": 10},
            "B": {"concurrency": 100},
            "D": {"poll": 0.005},
            "E": {"poll": 1.0},  # of the queue, which has nothing to do with messages
        },
    ),
    Entry(
        name="awa",
        module="benchmarks.engines.awa",
        quick=False,
        requirements=("awa-pg==0.6.9", "uvloop"),
        # Its view of all jobs is slow to count; ended jobs are in batches, then in a table, then only in a counter.
        done=AWA_DONE,
        left="SELECT (SELECT coalesce(sum(last_value), 0) FROM pg_sequences WHERE schemaname = 'awa' "
        f"AND sequencename LIKE 'queue_enqueue_seq_%') - ({AWA_DONE})",
        row_per_step=True,
        workloads=COMMON | {"E"},
        share={"B": 0.05, "E": 0.5},
        options={
            "*": {"workers": 512, "batch": 512},
            "D": {"poll_ms": 20},
        },
    ),
    Entry(
        name="chancy",
        module="benchmarks.engines.chancy",
        quick=False,
        requirements=("chancy==0.26.0", "psycopg[binary]", "uvloop"),
        done="SELECT count(*) FROM chancy_jobs WHERE state = 'succeeded'",
        left="SELECT count(*) FROM chancy_jobs WHERE state <> 'succeeded'",
        row_per_step=True,
        share={"B": 0.2, "C": 0.5},
        options={"*": {"concurrency": 1000, "flush": 0.05}},
    ),
    Entry(
        name="oban",
        module="benchmarks.engines.oban",
        quick=False,
        requirements=("oban==0.7.0",),
        python=(3, 12),
        done="SELECT count(*) FROM oban_jobs WHERE state = 'completed'",
        left="SELECT count(*) FROM oban_jobs WHERE state <> 'completed'",
        row_per_step=True,
        share={"A": 0.5, "B": 0.2, "C": 0.5},
        options={"A": {"limit": 500}, "B": {"limit": 200}},
    ),
    Entry(
        name="absurd",
        module="benchmarks.engines.absurd",
        quick=False,
        requirements=("absurd-sdk==0.5.1", "absurdctl==0.5.1", "psycopg[binary]", "uvloop"),
        done="SELECT count(*) FROM absurd.t_default WHERE state = 'completed'",
        left="SELECT count(*) FROM absurd.t_default WHERE state <> 'completed'",
        workloads=COMMON | {"E", "F"},
        share={"A": 0.1, "B": 0.1, "C": 0.25, "F": 0.2},
        options={
            "*": {"concurrency": 200},
            "D": {"poll": 0.005},
            "E": {"poll": 0.005},
            "F": {"poll": 0.005, "kids": True},
        },
    ),
)

PEERS = tuple(entry.name for entry in ENTRIES if entry.name not in NOT_PEERS)
QUICK_PEERS = tuple(entry.name for entry in ENTRIES if entry.name in PEERS and entry.quick)


def find(name: str) -> Entry:
    """The entry of that name; ``ValueError`` names those that there are."""
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    raise ValueError(f"unknown engine {name!r}: there are {', '.join(e.name for e in ENTRIES)}")
