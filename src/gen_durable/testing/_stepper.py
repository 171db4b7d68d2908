"""A worker that is moved by hand: one claim, one step, one commit at a time, each by the code that does it always."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator

import psycopg

from gen_durable._runtime.drain import bounded
from gen_durable._runtime.held import Held, LocalQueue
from gen_durable._runtime.link import Link, LinkDown
from gen_durable._runtime.record import Record
from gen_durable._runtime.transaction import Transaction
from gen_durable._runtime.worker import Worker
from gen_durable._store.connection import unreachable
from gen_durable.engine import Engine
from gen_durable.errors import EngineStateError
from gen_durable.status import TransitionKind

__all__ = ["Stepper"]

SOON = 0.02  # seconds that are waited for a line of a limit, as long as it takes no more than so many looks
LOOKS = 50


class Stepper(Worker):
    """A registered worker, alive as any other, whose services don't run by themselves: ``take``, then ``step``."""

    def __init__(self, engine: Engine, queues: Iterable[str]) -> None:
        settings = dataclasses.replace(engine.settings, queues=dict.fromkeys(queues, 1))
        super().__init__(settings, engine._session.url, engine._sql, engine._hooks, engine)
        for queue in self.queues.values():
            queue.closed = True  # no executor starts what is buffered: we do
        self._unlearned = False
        self._known_lanes = 0
        self._record: Record | None = None
        self._outcome = "stale"
        self._goes_on = False
        self._refusal: tuple[Held, Exception] | None = None
        self._pause: float | None = None

    def _link(self, name: str, deadline: float = 0.0, patience: float | None = None) -> Link:
        """One connection for all, which take turns anyway."""
        return self._links[0] if self._links else super()._link("drain", deadline)

    async def open(self) -> None:
        """Registers, and takes back what dead workers held.

        Raises:
            DatabaseUnreachable: the connection broke.
        """
        with self._reachable():
            await self.start()
            for queue in self.queues.values():
                queue.on_full = lambda _: None
            await self._reaper.once()

    async def close(self) -> None:
        """Gives back what was taken and not done, and goes off the table."""
        rest = [(held.id, held.rev) for held in self._held.values()]
        try:
            if rest:
                with contextlib.suppress(psycopg.Error):  # else the lease gives it back
                    await bounded(self._claimer.release(rest), time.monotonic() + self._settings.statement_timeout)
        finally:
            await self.abandon()

    # By hand --------------------------------------------------------------------------------------

    async def take(self, queue: LocalQueue) -> Held | None:
        """Claims the next row of a queue.

        Raises:
            DatabaseUnreachable: the connection broke.
            EngineStateError: this worker was declared dead.
        """
        if self.dead:
            raise EngineStateError(
                f"the drain's worker {self.id} was declared dead by another one: a step blocked this process, or the "
                "database was away, for longer than the lease"
            )
        with self._reachable():
            if self._unlearned or self._known_lanes != len(self._client._lanes):
                await self.learn()
            if queue.lanes:
                await self._claimer.claim({queue: 1})
        return queue.buffer.popleft() if queue.buffer else None

    async def step(self, held: Held) -> tuple[str, bool]:
        """Runs the step that a row stands at and commits its outcome.

        Answers with the outcome's name, ``stale`` when it was refused, and whether the claim goes on.

        Raises:
            DatabaseUnreachable: the connection broke.
            asyncio.CancelledError: this task was cancelled; nothing is committed.
        """
        task = asyncio.current_task()
        assert task is not None
        cancels = task.cancelling()
        self._outcome, self._goes_on, self._pause = "stale", False, None
        held.queue.empty = True  # as if nobody waited: a chain runs to its end, however long it takes
        held.task = task
        try:
            await self._executor.run(held)
        except asyncio.CancelledError:
            if not held.gone:
                raise
        finally:
            held.task = None
        if held.gone and task.cancelling() > cancels:
            task.uncancel()  # it was the instance that was cancelled, not we
        if task.cancelling() > cancels:
            raise asyncio.CancelledError  # the step was told of it, and the executor took it for the step's error

        with self._reachable():
            await self._commit()
        if self._pause is not None and not held.gone:
            await asyncio.sleep(self._pause)
            return await self.step(held)
        return "cancelled" if held.gone else self._outcome, self._goes_on

    async def _commit(self) -> None:
        await self._transactor.wait_idle()
        await self._flusher.flush()
        while self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            await self._executor.refuse(*refusal)
            await self._flusher.flush()

    async def promote(self) -> bool:
        """Makes runnable what has become due and what limits let go, and starts what schedules have come to; answers
        whether anything has."""
        for queue in self.queues.values():
            queue.empty = True
        with self._reachable():
            await self._schedules.once()
            await self._timers.once()
            for _ in range(LOOKS):
                self._admitter.knock()
                delay = await self._admitter.once()
                if delay > SOON or not self._idle:
                    break
                await asyncio.sleep(delay)
        return not self._idle

    @property
    def _idle(self) -> bool:
        return all(queue.empty for queue in self.queues.values())

    async def learn(self) -> bool:
        """Looks for lanes that were made since; answers whether there are any."""
        self._unlearned = False
        self._known_lanes = len(self._client._lanes)
        known = set(self._claimer.specs)
        with self._reachable():
            await self._learn_lanes()
        return set(self._claimer.specs) != known

    @property
    def lanes(self) -> list[int]:
        """The lanes that it can run."""
        return sorted(self._claimer.specs)

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except LinkDown as error:
            raise unreachable(self._url, error) from error

    # What the worker's parts report ---------------------------------------------------------------

    def notified(self, message: str) -> None:
        """A wake-up: what is due is asked for anyway, at the moments when that is due; never in between."""
        kind = message.partition(":")[0]
        if kind in ("l", "*"):
            self._unlearned = True
        elif kind not in ("q", "t"):
            super().notified(message)

    def lanes_changed(self) -> None:
        """There are new lanes: learnt before the next claim."""
        self._unlearned = True

    def add(self, held: Held, record: Record) -> None:
        """An outcome for the commit."""
        self._record = record
        super().add(held, record)

    def add_within(self, held: Held, record: Record, transaction: Transaction) -> None:
        """An outcome for its step's own transaction."""
        self._record = record
        super().add_within(held, record, transaction)

    def again(self, held: Held, delay: float) -> None:
        """Its step runs again, by hand."""
        held.values = held.spawning = None
        self._pause = delay

    def goes_on(self, held: Held) -> None:
        """The commit is there, and the claim stays."""
        self._goes_on = True
        self._note(self._record)

    def left(self, held: Held, record: Record | None) -> None:
        """The claim has ended."""
        super().left(held, record)
        self._note(record)

    def refused(self, held: Held, error: Exception) -> None:
        """Its outcome can't be committed: the step gets that as its error."""
        self._refusal = held, error

    def _note(self, record: Record | None) -> None:
        if record is not None:
            self._outcome = TransitionKind(record.kind).label
