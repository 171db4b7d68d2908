"""What a worker holds: claimed rows, and the queue-by-queue buffers and executors that run them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from gen_durable.machine import MachineSpec

__all__ = ["Held", "LocalQueue"]

SLICE = 0.005


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
        "due_at",
        "id",
        "inserted_at",
        "key",
        "lane",
        "priority",
        "queue",
        "raw",
        "rev",
        "spec",
        "step",
        "values",
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
        self.look_at = 0.0  # when to look again all the same (monotonic)
        self.misses = 0  # claims in a row that found nothing, where other workers may have been at it
        self.bytes = 1.0  # of state that a row has, lately
        self.ahead = 0  # how many to hold beyond what runs
        self._run = run
        self._parked: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_room: Callable[[], None] = lambda: None
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
            task = asyncio.create_task(self._execute(), name=f"gen_durable executor of {self.name}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.on_crash(error)
        else:
            self.wake_one()

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
                try:
                    await self._run(held)
                finally:
                    self.running -= 1
                if task.cancelling():
                    return  # it was cancelled and went on, or its step cancelled it: another takes its place
                if not self.empty and (not buffer or self.load * 2 <= self.concurrency + self.ahead):
                    self.on_room()
                if time.monotonic() > until:
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
