"""The engines that can be measured; to add one, add an entry here and a module in ``benchmarks/engines``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OWN = "gen_durable"
FLOOR = "floor"
ALL = frozenset("ABCDEFGHIJN") | {"B.step", "D.result"}
COMMON = frozenset("ABCD")
"""What every engine has; E and F need signals, and children with a join; G, H and N limits; I levels of history; J
transactional steps.

``B.step`` is for an engine that has more than one way to go from a step to the next, and so runs ahead in ``B``;
``D.result`` for one whose caller can wait for a result."""


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
    workloads: frozenset[str] = COMMON
    row_per_step: bool = False
    share: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings per workload, ``B`` or ``B.step``, whose own go first; ``*`` for all. The best that its documentation
    leads to."""
    park: str = ""
    """SQL that makes as many parked instances as its parameter says, out of the one that is there."""
    crowd: str = ""
    """SQL that makes as many instances that wait for a limit as its parameter says, out of the one that is there."""
    waiting: str = ""
    """SQL that counts those, and those of them that were written by another transaction than most: since then."""

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


ENTRIES = (
    Entry(
        name=OWN,
        module="benchmarks.engines.gen_durable",
        done="SELECT count(*) FROM gen_durable.finished WHERE status = 6",
        left="SELECT count(*) FROM gen_durable.instances",
        workloads=ALL,
        # Every second one has a deadline, a month away or more.
        park="INSERT INTO gen_durable.instances (due_at, inserted_at, updated_at, lane, status, step, state, awaits) "
        "SELECT CASE WHEN n % 2 = 0 THEN now() + make_interval(days => 30, secs => n) ELSE 'infinity' END, "
        "now(), now(), i.lane, 3, i.step, i.state, ARRAY['go'] "
        "FROM gen_durable.instances i, generate_series(1, $1::int) n",
        crowd="INSERT INTO gen_durable.instances "
        "(due_at, inserted_at, updated_at, lane, status, step, state, gate, own_gate, line) "
        "SELECT i.due_at, now(), now(), i.lane, 5, i.step, i.state, i.gate, i.own_gate, i.line "
        "FROM gen_durable.instances i, generate_series(1, $1::int)",
        waiting="SELECT coalesce(sum(n), 0), coalesce(sum(n) - max(n), 0) "
        "FROM (SELECT count(*) AS n FROM gen_durable.instances WHERE status = 5 GROUP BY xmin::text) AS written",
        options={
            "B.step": {"run_ahead": False},
            "J": {"concurrency": 20},
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
        name="pgqueuer",
        module="benchmarks.engines.pgqueuer",
        requirements=("pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop"),
        done="SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'",
        left="SELECT count(*) FROM pgqueuer",
        row_per_step=True,
        share={"B": 0.5},
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
        workloads=COMMON | {"D.result"},
        share={"A": 0.1, "B": 0.25, "C": 0.1},
        options={
            "*": {"threads": 10},
            "B": {"concurrency": 100},
            "D": {"poll": 0.005},
        },
    ),
)

PEERS = tuple(entry.name for entry in ENTRIES if entry.name not in (OWN, FLOOR))


def find(name: str) -> Entry:
    """The entry of that name; ``ValueError`` names those that there are."""
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    raise ValueError(f"unknown engine {name!r}: there are {', '.join(e.name for e in ENTRIES)}")
