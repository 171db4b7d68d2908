"""What the engine's tests share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from gen_durable import Engine, Handle, Snapshot
from gen_durable.errors import InstanceCancelled, InstanceFailed

Build: TypeAlias = Callable[..., Engine]
Sql: TypeAlias = Callable[..., Awaitable[list[tuple[Any, ...]]]]
T = TypeVar("T")

LONG = 15.0  # seconds that nothing here may take, on a busy machine either


async def ended(handle: Handle, timeout: float = LONG) -> Snapshot:
    """The instance when it has ended, however it ended."""
    with contextlib.suppress(InstanceFailed, InstanceCancelled):
        await handle.result(timeout=timeout)
    return await handle.get()


async def failure(handle: Handle, timeout: float = LONG) -> dict[str, Any]:
    """The stored error of an instance that must fail."""
    found = await ended(handle, timeout)
    assert found.status == "failed", found
    assert found.error is not None
    return found.error


async def moment(seconds: float) -> None:
    """A span in which something must not happen."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


async def eventually(check: Callable[[], Awaitable[T]], timeout: float = LONG) -> T:
    """Asks until the answer is true: for what the engine raises no event for."""
    async with asyncio.timeout(timeout):
        while not (found := await check()):
            await moment(0.01)
        return found


class Seen:
    """The events of one kind, kept; each can be waited for."""

    def __init__(self, engine: Engine, *names: Any) -> None:
        self.all: list[Any] = []
        self._more = asyncio.Event()
        for name in names:
            engine.on(name, self._add)

    def _add(self, event: Any) -> None:
        self.all.append(event)
        self._more.set()

    async def until(self, check: Callable[[list[Any]], Any], timeout: float = LONG) -> list[Any]:
        """Waits until ``check(events so far)`` is true."""
        async with asyncio.timeout(timeout):
            while not check(self.all):
                self._more.clear()
                await self._more.wait()
        return self.all
