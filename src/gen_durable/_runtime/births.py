"""Rows that this process's own inserts bring into being as claims of its worker: nobody has to claim them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Self

from gen_durable._runtime.claimer import Claimer
from gen_durable._runtime.held import Held, LocalQueue
from gen_durable._store.inserting import Born

__all__ = ["Birth", "Births"]

Claim = tuple[int, int]  # id and rev


class Birth:
    """One insert that is under way, and the places that are kept for its rows; a context manager around it."""

    def __init__(self, births: Births, worker: int, places: dict[LocalQueue, int]) -> None:
        self.worker = worker
        self.started: set[int] = set()  # ids of the rows that the worker has taken
        self.late: list[Claim] = []  # those that came when its life was over: the caller is to release them
        self._births = births
        self._places = places

    def born(self, rows: list[Born]) -> None:
        """Hands rows to the worker: they are in the table, and its claims."""
        self.started.update(born.id for born in rows)
        if self._births.over:
            self.late += [(born.id, 0) for born in rows]
            return
        for queue, batch in self._births.take(rows).items():
            self._places[queue] -= len(batch)
            queue.expected -= len(batch)
            queue.put(batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for queue, count in self._places.items():
            queue.expected -= count
            if count and not queue.empty:
                queue.on_room()
        self._births.end(self, answered=kind is None)


class Births:
    """The inserts under way whose rows are to be born as claims of one worker's life."""

    def __init__(self, held: dict[int, Held], changed: Callable[[], None]) -> None:
        self.over = True  # no life has begun, or it has ended
        self.under_way: set[Birth] = set()
        self.unsure = False  # an answer was lost, and nobody has looked since
        self._held = held
        self._changed = changed
        self._idle = asyncio.Event()
        self._idle.set()
        self._young: set[int] = set()  # strays that may be rows of inserts whose answer is on its way
        self._parents: set[Birth] = set()  # those inserts, while they are under way
        self._worker = 0
        self._claimer: Claimer
        self._commits_lag: Callable[[], bool]

    def open(self, worker: int, claimer: Claimer, commits_lag: Callable[[], bool]) -> None:
        """A life begins."""
        self._worker, self._claimer, self._commits_lag = worker, claimer, commits_lag
        claimer.lost = self._lost
        self.over = False

    def expect(self, counts: Mapping[int, int]) -> Birth | None:
        """Keeps places for so many rows of each lane; None where a claim would not take them all, and at once.

        Nothing that waits may be passed by: so not while anything is announced or just being claimed. (What is buffered
        has places of its own, and starts first.)
        """
        claimer = self._claimer
        if self.over or claimer.claiming or claimer.failing or claimer.closing or self._commits_lag():
            return None
        places: dict[LocalQueue, int] = {}
        for lane, count in counts.items():
            if lane not in claimer.specs:
                return None
            queue = claimer.specs[lane][1]
            places[queue] = places.get(queue, 0) + count
        for queue, count in places.items():
            if queue.closed or queue.paused or not queue.empty:
                return None
            if queue.load + count > queue.concurrency:
                return None
        for queue, count in places.items():
            queue.expected += count
        birth = Birth(self, self._worker, places)
        self.under_way.add(birth)
        self._idle.clear()
        return birth

    def take(self, rows: list[Born]) -> dict[LocalQueue, list[Held]]:
        """Makes claims of rows, the most urgent of each queue first."""
        now = time.monotonic()
        got: dict[LocalQueue, list[Held]] = {}
        for id_, row, at in rows:
            spec, queue = self._claimer.specs[row.lane]
            held = Held(
                id_, 0, row.lane, row.step, bytes(row.state), 0, 0, row.priority, row.key, at, at, spec, queue, now
            )
            self._held[id_] = held
            got.setdefault(queue, []).append(held)
        for queue, batch in got.items():
            batch.sort(key=lambda held: (held.priority, held.id))
            if queue.paused or queue.saturated:
                self._claimer.wake()  # to give back what can't be started
        self._changed()
        return got

    def end(self, birth: Birth, *, answered: bool) -> None:
        """An insert has returned, or failed: then its rows may be there all the same."""
        self.under_way.discard(birth)
        if not self.under_way:
            self._idle.set()
        doubted = birth in self._parents
        self._parents.discard(birth)
        self.unsure = self.unsure or not answered
        if not self.over and (not answered or (doubted and not self._parents)):
            self._claimer.check_soon()
        self._changed()

    async def wait_over(self) -> None:
        """Waits until no insert is under way."""
        await self._idle.wait()

    def _lost(self, strays: list[Claim]) -> list[Claim]:
        """Which strays are nobody's for sure.

        Only a row that was born claimed has rev 0. One that is seen while inserts are under way may be theirs; it is
        lost when it is still a stray after all of those have ended.
        """
        known = set() if self._parents else self._young
        lost = [(id_, rev) for id_, rev in strays if rev or not self.under_way or id_ in known]
        if not self._parents:  # else the answer to an earlier look is still to come
            self._young = {id_ for id_, _ in strays} - {id_ for id_, _ in lost}
            self._parents = set(self.under_way) if self._young else set()
        if not self.under_way:
            self.unsure = False
        return lost
