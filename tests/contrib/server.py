"""A web server of a test's own: a process on a free port, ended by its pid, whose output is read line by line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
RUNNING = re.compile(r"(http://127\.0\.0\.1:\d+)")


class Server:
    """A process that serves, and what it has printed."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._more = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._more:
                self.lines.append(line.decode(errors="replace").rstrip())
                self._more.notify_all()
        async with self._more:
            self._more.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    async def until(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        """Waits for a line that fits."""
        async with asyncio.timeout(PATIENCE), self._more:
            while True:
                for line in self.lines:
                    if found := re.search(pattern, line):
                        return found
                assert not self._reading.done(), self.output
                await self._more.wait()

    async def url(self) -> str:
        """Where it listens."""
        return (await self.until(RUNNING))[1]

    async def ended(self) -> int:
        """Its exit code, when it has ended."""
        async with asyncio.timeout(PATIENCE):
            code = await self.process.wait()
            await self._reading
        return code

    async def end(self) -> int:
        """SIGTERM, then as ``ended``."""
        if self.process.returncode is None:
            self.process.terminate()
        try:
            return await self.ended()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise AssertionError(f"it did not end:\n{self.output}") from None


@contextlib.asynccontextmanager
async def started(
    *arguments: str, env: Mapping[str, str], cwd: Path = ROOT, python: str = sys.executable
) -> AsyncIterator[Server]:
    """Runs ``python arguments`` from start to end of the block."""
    process = await asyncio.create_subprocess_exec(
        python,
        *arguments,
        stdout=PIPE,
        stderr=STDOUT,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
        start_new_session=True,
    )
    server = Server(process)
    try:
        yield server
    finally:
        await server.end()
