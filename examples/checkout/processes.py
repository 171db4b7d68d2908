"""Child processes that never outlive the demo: it ends each by its pid, and each ends when the demo is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Iterable, Mapping
from typing import Self

PATIENCE = 10.0  # seconds that a child gets to end by itself


class ChildDied(Exception):
    """A child ended that nobody asked to end."""


def end_with_parent() -> None:
    """In a child: SIGTERM to itself when its standard input is closed, which is when the parent is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


class Children:
    """Starts and ends processes; those that run at the end of ``async with`` are ended."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._running: dict[int, tuple[str, Process]] = {}
        self._readers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        running = [process for _, process in reversed(self._running.values())]
        self._running.clear()
        await asyncio.gather(*(_end(process) for process in running))
        await asyncio.gather(*self._readers)

    async def start(self, module: str, *arguments: str, env: Mapping[str, str]) -> Process:
        """Starts ``python -m module``. A session of its own keeps Ctrl-C away from it: the demo ends it in order."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            env={**os.environ, **env},
            start_new_session=True,
        )
        self._running[process.pid] = module.rpartition(".")[2], process
        return process

    def listen(self, process: Process) -> None:
        """Says each line that a child prints."""
        name, _ = self._running[process.pid]

        async def read() -> None:
            assert process.stdout is not None
            async for line in process.stdout:
                self._say(f"{name} {process.pid}: {line.decode(errors='replace').rstrip()}")

        self._readers.add(asyncio.create_task(read()))

    async def kill(self, pid: int) -> None:
        """SIGKILL; returns when the process is gone."""
        _, process = self._running.pop(pid)
        process.kill()
        await process.wait()

    async def end(self, pids: Iterable[int]) -> None:
        """Ends those of them that run, as at the end of ``async with``; returns when they are gone."""
        running = [self._running.pop(pid)[1] for pid in pids if pid in self._running]
        await asyncio.gather(*(_end(process) for process in running))

    def check(self) -> None:
        """Raises ``ChildDied`` when one ended by itself."""
        for name, process in self._running.values():
            if process.returncode is not None:
                raise ChildDied(f"{name} {process.pid} ended by itself with exit status {process.returncode}")


async def _end(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    try:
        async with asyncio.timeout(PATIENCE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
