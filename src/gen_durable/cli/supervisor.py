"""The supervisor of ``gen-durable worker --processes N``: starts child processes, and replaces those that die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Policy", "Supervisor"]

_WRONG_USAGE = 2  # a child that ends so would end so again


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When a dead child is replaced, and when the supervisor gives up.

    Attributes:
        healthy: seconds; a child that lived that long did not die at once.
        first, longest: seconds to wait after the second death at once in a row, doubled from there up to the longest.
        limit: so many deaths at once in a row in one place end the supervisor.
    """

    healthy: float = 10.0
    first: float = 0.5
    longest: float = 30.0
    limit: int = 10

    def delay(self, quick: int) -> float:
        """Seconds to wait after ``quick`` deaths at once in a row: the first is replaced without waiting."""
        return 0.0 if quick < 2 else min(self.first * 2.0 ** (quick - 2), self.longest)


class Supervisor:
    """Keeps a number of child processes running until SIGTERM or SIGINT.

    A child gets ``--leash FD``, one end of a socket pair. It writes a byte when it has loaded its engine; it ends when
    the other end is closed, which the kernel does when the supervisor dies. The first child must have loaded before the
    others start, so that a wrong command is complained of once.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        policy: Policy | None = None,
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._command = list(command)
        self._env = None if env is None else {**os.environ, **env}
        self._processes = processes
        self._policy = policy or Policy()
        self._children: dict[int, Process] = {}
        self._loaded = asyncio.Event()
        self._stop = asyncio.Event()
        self._signals = 0
        self._code = 0

    async def run(self) -> int:
        """Runs until a signal, or until the children keep failing; the exit code: 0 after a clean drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        self._say(f"supervisor {os.getpid()}: {self._processes} worker processes")
        async with asyncio.TaskGroup() as group:
            for place in range(1, self._processes + 1):
                group.create_task(self._keep(place))
        self._say("all worker processes have ended")
        return self._code

    def _signalled(self) -> None:
        self._signals += 1
        wish = ("drain", "hurry", "kill")[min(self._signals, 3) - 1]
        self._say(f"signal {self._signals}: {wish}")
        self._end(signal.SIGKILL if wish == "kill" else signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        self._stop.set()
        self._loaded.set()
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

    def _fail(self, code: int) -> None:
        if self._stop.is_set():
            return
        self._code = code if code > 0 else 1
        self._end(signal.SIGTERM)

    async def _keep(self, place: int) -> None:
        """Keeps one place filled."""
        if place > 1:
            await self._loaded.wait()
        quick = 0
        while not self._stop.is_set():
            started = time.monotonic()
            pid, code = await self._life(place)
            if self._stop.is_set():
                if code not in (0, -signal.SIGTERM):  # SIGTERM: it had not begun to work
                    self._code = self._code or 1
                    self._say(f"worker {place} (pid {pid}) {_end_of(code)} while it drained")
                return
            quick = quick + 1 if time.monotonic() - started < self._policy.healthy else 0
            if code == _WRONG_USAGE or quick >= self._policy.limit:
                why = "would fail again" if code == _WRONG_USAGE else f"died at once {quick} times in a row"
                self._say(f"worker {place} (pid {pid}) {_end_of(code)}: it {why}; giving up")
                self._fail(code)
                return
            delay = self._policy.delay(quick)
            self._say(
                f"worker {place} (pid {pid}) {_end_of(code)}; another starts {f'in {delay:g} s' if delay else 'now'}"
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stop.wait()

    async def _life(self, place: int) -> tuple[int, int]:
        """One child from start to end; its pid and its return code."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                ours.setblocking(False)
                # A session of its own: a terminal sends Ctrl-C to the whole group, and it would arrive twice.
                child = await asyncio.create_subprocess_exec(
                    *self._command,
                    "--leash",
                    str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    env=self._env,
                    start_new_session=True,
                )
            self._children[place] = child
            self._say(f"worker {place} started (pid {child.pid})")
            if self._stop.is_set():  # a signal came while it started
                child.terminate()
            listening = asyncio.create_task(self._listen(ours))
            try:
                return child.pid, await child.wait()
            finally:
                del self._children[place]
                listening.cancel()
                await asyncio.wait([listening])

    async def _listen(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if await asyncio.get_running_loop().sock_recv(end, 1):
                self._loaded.set()

    @staticmethod
    def _say(line: str) -> None:
        print(f"gen-durable: {line}", file=sys.stderr, flush=True)


def _end_of(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
