"""A task: one key, and what a sample of it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.agent import WARM
from benchmarks.board import MARKS
from benchmarks.registry import PEERS, Entry
from benchmarks.samples import Measure, Sample
from benchmarks.workloads.bench import Bench

FEW = 3
"""Repetitions at most of what takes long, and of slow engines."""
LONG = frozenset((*"GHIKLMN", "E.idle", "E.parked", "F.large"))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of each."""

    jobs: int = 20_000
    chains: int = 4_000
    singles: int = 1_000
    paid: int = 10_000
    bulk: int = 20_000
    latencies: int = 200
    parked: int = 100_000
    idle: float = 10.0
    family: int = 5_000
    large: int = 100_000
    crowd: int = 1_000_000
    terminal: int = 5_000_000
    steady: float = 4.0
    executing: int = 10_000
    pairs: int = 2
    """Of runs in turns, where one thing is measured beside another."""


QUICK = Sizes(
    paid=4_000,
    chains=1_000,
    singles=500,
    latencies=100,
    parked=20_000,
    idle=5.0,
    large=20_000,
    crowd=100_000,
    terminal=100_000,
    steady=2.0,
    pairs=1,
)
assert WARM + Sizes.latencies < MARKS


@dataclass(frozen=True)
class Task:
    """One measure and how to take one sample of it.

    Args:
        procs: where it is measured by so many worker processes.
        needs: the workload that an engine must have; by default that of the letter.
        same: the key that means the same to an engine without the workload ``own``.
        alone: it is for this engine and the floor only.
    """

    measure: Measure
    run: Callable[[Bench], Sample]
    procs: int | None = None
    needs: str = ""
    same: str = ""
    own: str = ""
    alone: bool = False

    @property
    def key(self) -> str:
        return self.measure.key

    @property
    def letter(self) -> str:
        """The workload that it belongs to."""
        return self.key[0]

    @property
    def base(self) -> str:
        """The key without the number of worker processes."""
        return self.key.removesuffix(f".{self.procs}")

    @property
    def most(self) -> int | None:
        """Repetitions at most."""
        return FEW if {self.letter, self.base} & LONG else None

    def fits(self, entry: Entry) -> bool:
        """Whether the engine has the workload, and is to be measured."""
        return not (self.alone and entry.name in PEERS) and (self.needs or self.letter) in entry.workloads

    def same_for(self, entry: Entry) -> str:
        """The key that means the same to this engine, or nothing."""
        return self.same if self.own not in entry.workloads else ""
