"""What a worker holds: claimed rows, and the queue-by-queue buffers and executors that run them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from datetime import datetime
from typing import Any

import msgspec

from gen_durable._store.inserting import NewInstance
from gen_durable.machine import MachineSpec

__all__ = ["Held", "LocalQueue", "Waits"]

SLICE = 0.005


class InboxRow(msgspec.Struct):
    """A signal as ``claim.sql`` gives it; ``status`` is 0 for one that no step was handed, else 1."""

    id: int
    status: int
    sent_at: datetime
    name: str
    payload: Any


class Waits(msgspec.Struct):
    """What a claimed row has waited for: the last column of ``claim.sql``."""

    awaits: list[str] | None = None
    spawn: int | None = None
    left: int | None = None
    spare: int | None = None
    rest: bool | None = None
    signals: list[InboxRow] | None = None

    def awaited(self) -> list[InboxRow]:
        """The signals of the names that it waited for, oldest first."""
        names = self.awaits
        return [row for row in self.signals or () if row.name in names] if names is not None else []

    def left_over(self) -> list[InboxRow]:
        """The signals that an earlier step was handed, which then awaited others."""
        awaited = {row.id for row in self.awaited()}
        return [row for row in self.signals or () if row.status and row.id not in awaited]

    @property
    def timed_out(self) -> bool:
        """Whether it was its timeout that woke it.

        Of an await: what is awake without a new signal. Of a join: what is awake and was not to open.
        """
        if self.awaits is not None:
            return all(row.status for row in self.awaited())
        return self.left is not None and self.left > 0 and not (self.spare is not None and self.spare < 0)

    def progress(self) -> None:
        """Its step has gone on under the same claim: what it was handed is consumed, and it waits for nothing."""
        for row in self.left_over():
            row.status = 0
        gone = {row.id for row in self.awaited()}
        self.signals = [row for row in self.signals or () if row.id not in gone]
        self.awaits = self.left = self.spare = self.rest = None


decode_waits = msgspec.json.Decoder(Waits).decode


class Held:
    """One claimed row, from its claim until its claim ends.

    ``rev`` is the fencing token; it grows with each commit that keeps the claim. ``values`` is the decoded state for
    the next run when it is known already, else ``raw`` holds it.
    """

    __slots__ = (
        "attempt",
        "buffered_at",
        "chain_since",
        "chain_steps",
        "crashes",
        "doubt",
        "due_at",
        "gate",
        "gone",
        "handled",
        "id",
        "inserted_at",
        "key",
        "lane",
        "own_gate",
        "parent_id",
        "priority",
        "queue",
        "rate",
        "raw",
        "reruns",
        "rev",
        "spawning",
        "spec",
        "step",
        "task",
        "values",
        "waits",
    )

    def __init__(
        self,
        id: int,
        rev: int,
        lane: int,
        step: str,
        raw: bytes,
        attempt: int,
        crashes: int,
        priority: int,
        key: str | None,
        due_at: datetime,
        inserted_at: datetime,
        spec: MachineSpec,
        queue: LocalQueue,
        buffered_at: float,
        parent_id: int | None = None,
        waits: bytes | None = None,
        gate: str | None = None,
        own_gate: str | None = None,
        rate: str | None = None,
    ) -> None:
        self.id = id
        self.rev = rev
        self.lane = lane
        self.step = step
        self.raw = raw
        self.attempt = attempt
        self.crashes = crashes
        self.priority = priority
        self.key = key
        self.due_at = due_at
        self.inserted_at = inserted_at
        self.spec = spec
        self.queue = queue
        self.buffered_at = buffered_at
        self.values: dict[str, Any] | None = None
        self.chain_steps = 0
        self.chain_since = buffered_at
        self.parent_id = parent_id
        self.waits: Waits | None = None if waits is None else decode_waits(waits)
        self.gate = gate  # the line of the concurrency key that it holds
        self.own_gate = own_gate  # that of the instance: for steps without one of their own
        self.rate = rate
        self.spawning: list[NewInstance] | None = None  # the children that its outcome inserts
        self.task: asyncio.Task[None] | None = None  # that runs it
        self.gone = False  # it was cancelled: what comes of it is dropped
        self.reruns = 0  # of its step, since the database refused its transaction
        self.doubt = False  # the answer to such a commit never came: it may be there
        self.handled = False  # its outcome is one of its handler of errors


class LocalQueue:
    """One queue in this worker: its buffer of claimed rows and the fixed set of coroutines that run them.

    Executors are made when they are first needed, never more than ``concurrency``; each takes rows until the buffer is
    empty. A step that never waits costs no task and no switch; when one first waits, another executor is woken for the
    rows behind it.
    """

    def __init__(self, name: str, concurrency: int, run: Callable[[Held], Awaitable[None]]) -> None:
        self.name = name
        self.concurrency = concurrency
        self.buffer: deque[Held] = deque()
        self.running = 0
        self.expected = 0  # places kept for rows that are just being inserted as claims; see births.py
        self.started = 0  # runs begun since the worker started: the claimer measures the pace with it
        self.lanes: list[int] = []
        # The claimer's notes
        self.empty = False  # the last claim got fewer than it asked for, and nothing has been announced since
        self.backlog = False  # the last claim got all that it asked for
        self.look_at = 0.0  # when to look again all the same (monotonic)
        self.doubted = False  # that look is for what the last claim may have passed by
        self.left: list[int] = []  # the lanes in which the last look has seen due rows
        self.misses = 0  # looks in a row that have seen some, since a claim got any or something was announced
        self.bytes = 1.0  # of state that a row has, lately
        self.ahead = 0  # how many to hold beyond what runs
        self.capped = False  # a cap of the whole cluster holds for it
        self.punctual = False  # none: it has steps with a rate, whose tokens count from their start
        self._run = run
        # Of the executors: where a step's insert makes one, that must not have the step's own variables.
        self._context = copy_context()
        self._parked: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_room: Callable[[], None] = lambda: None
        self.commits_wait: Callable[[int], bool] = lambda left: False
        self.on_full: Callable[[LocalQueue], None] = lambda queue: None
        self.on_crash: Callable[[BaseException], None] = lambda error: None
        self.closed = False  # drain: what is buffered is not started any more
        self.paused = False  # the same, until it is resumed
        self.cancelled = False  # what runs is cancelled too

    @property
    def load(self) -> int:
        """How many rows are buffered or running, or are about to come."""
        return len(self.buffer) + self.running + self.expected

    @property
    def saturated(self) -> bool:
        """Whether a further row would have to wait."""
        return self.running >= self.concurrency

    @property
    def crowded(self) -> bool:
        """Whether more is buffered than can be started now."""
        return len(self.buffer) + self.running > self.concurrency

    def put(self, rows: list[Held]) -> None:
        """Hands rows over to the executors."""
        self.buffer.extend(rows)
        self.wake_one()

    def wake_one(self) -> None:
        """Gets one more executor to work, if the buffer has work for it."""
        if not self.buffer or self.closed or self.paused:
            return
        while self._parked:
            future = self._parked.pop()
            if not future.done():  # a step can have cancelled its executor
                future.set_result(None)
                return
        if len(self._tasks) < self.concurrency:
            name = f"gen_durable executor of {self.name}"
            task = asyncio.create_task(self._execute(), name=name, context=self._context.copy())
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.on_crash(error)
        else:
            self.wake_one()
            self._tell_of_room()

    def _tell_of_room(self) -> None:
        if not self.empty and (not self.buffer or self.load * 2 <= self.concurrency + self.ahead):
            self.on_room()

    async def _execute(self) -> None:
        buffer = self.buffer
        task = asyncio.current_task()
        assert task is not None
        while True:
            until = time.monotonic() + SLICE
            while buffer and not self.closed and not self.paused:
                held = buffer.popleft()
                self.running += 1
                self.started += 1
                held.task = task
                try:
                    await self._run(held)
                finally:
                    self.running -= 1
                    held.task = None
                if task.cancelling():
                    return  # it was cancelled and went on, or its step cancelled it: another takes its place
                self._tell_of_room()
                if self.commits_wait(len(buffer)) or time.monotonic() > until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + SLICE
            future = asyncio.get_running_loop().create_future()
            self._parked.append(future)
            await future

    def cancel(self) -> None:
        """Cancels every executor, and so the steps that they run."""
        self.cancelled = True
        for task in self._tasks:
            task.cancel()

    async def wait_cancelled(self, timeout: float) -> None:
        """Waits until every executor has ended, at most ``timeout`` seconds: a step may refuse to be cancelled."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout)
