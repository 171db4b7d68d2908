"""Threads for steps that are plain functions."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

__all__ = ["DaemonThreads"]


class DaemonThreads(Executor):
    """A pool of daemon threads: a step that never returns can't keep the process from ending.

    (The standard pool joins its threads when the interpreter exits, however long that takes.)
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._idle = threading.Semaphore(0)
        self._count = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Runs ``fn`` in a thread; keyword arguments are not taken."""
        if kwargs:
            raise TypeError("keyword arguments are not taken: use functools.partial")
        future: Future[Any] = Future()
        self._work.put((future, fn, args))
        if not self._idle.acquire(blocking=False) and self._count < self._most:
            self._count += 1
            threading.Thread(target=self._run, name=f"gen_durable step {self._count}", daemon=True).start()
        return future

    def _run(self) -> None:
        while item := self._work.get():
            future, fn, args = item
            if future.set_running_or_notify_cancel():
                try:
                    result = fn(*args)
                except BaseException as error:  # noqa: BLE001  # it belongs to whoever waits for the future
                    future.set_exception(_storable(error))
                else:
                    future.set_result(result)
            del item, future, fn, args
            self._idle.release()

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Lets idle threads end; those at work end with their step or with the process."""
        for _ in range(self._count):
            self._work.put(None)


def _storable(error: BaseException) -> BaseException:
    """A future of asyncio can't hold a StopIteration, and would never end; a coroutine turns it into the same."""
    if not isinstance(error, StopIteration):
        return error
    raised = RuntimeError("the step raised StopIteration")
    raised.__cause__ = error
    return raised
