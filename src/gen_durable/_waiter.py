"""Waits for word of an instance's end: on the event loop, or in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Protocol

__all__ = ["LoopWaiter", "ThreadWaiter", "Waiter"]


class Waiter(Protocol):
    """Somebody who waits."""

    def set(self) -> None:
        """There may be news."""

    def clear(self) -> None:
        """What has come so far is known."""

    async def wait(self, seconds: float) -> None:
        """Waits until there may be news, or so long."""


class LoopWaiter:
    """On the event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.set, self.clear = self._event.set, self._event.clear

    async def wait(self, seconds: float) -> None:
        """Waits until there may be news, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()


class ThreadWaiter:
    """In a thread, which it blocks."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.set, self.clear = self._event.set, self._event.clear

    async def wait(self, seconds: float) -> None:
        """Waits until there may be news, or so long; it never suspends."""
        self._event.wait(min(seconds, threading.TIMEOUT_MAX))
