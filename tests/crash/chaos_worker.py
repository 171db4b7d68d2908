"""The worker process that the crash tests kill, and the machines it runs; started with a JSON configuration."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import time
from typing import Any

from gen_durable import Backoff, Context, Done, Engine, Machine, Next, job, step
from gen_durable.events import EventName

EVENTS: tuple[EventName, ...] = ("stale", "reaped", "worker_dead", "drain", "reconnect")
_journal = -1


def open_journal(path: str) -> None:
    """Where this process notes what happens."""
    global _journal
    if _journal >= 0:
        os.close(_journal)
    _journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(**fields: Any) -> None:
    """One line in the journal: a single small append, whole even when the process is killed in the middle of a step."""
    line = json.dumps({"pid": os.getpid(), "at": time.monotonic(), **fields}, default=repr)
    os.write(_journal, line.encode() + b"\n")


def begun(ctx: Context, **fields: Any) -> None:
    note(kind="run", id=ctx.id, step=ctx.step, attempt=ctx.attempt, crashes=ctx.crashes, worker=ctx.worker, **fields)


class Hold(Machine, name="hold"):
    """Waits on its first attempt, if it is not killed before; a later attempt ends at once."""

    seconds: float = 60.0
    filling: str = ""
    changed: int = 0

    @step
    async def wait(self, ctx: Context) -> Done:
        begun(ctx, changed=self.changed)
        self.changed += 1
        if ctx.attempt == 0:
            await asyncio.sleep(self.seconds)
            note(kind="woke", id=ctx.id)
        return Done(ctx.attempt)


class Blocking(Machine, name="blocking"):
    """The same in a thread, which nobody can cancel."""

    seconds: float = 60.0

    @step
    def wait(self, ctx: Context) -> Done:
        begun(ctx)
        if ctx.attempt == 0:
            time.sleep(self.seconds)
            note(kind="woke", id=ctx.id)
        return Done(ctx.attempt)


class Mule(Machine, name="mule"):
    """Refuses to be cancelled, for as long as anybody tries."""

    seconds: float = 60.0

    @step
    async def wait(self, ctx: Context) -> Done:
        begun(ctx)
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)
        return Done(None)


class Chain(Machine, name="chain"):
    """Counts to ``total``, one step each; on the first attempt at the number ``hold_at`` it waits."""

    total: int = 5
    hold_at: int = -1
    seconds: float = 60.0
    pause: float = 0.0
    n: int = 0
    seen: list[int] = dataclasses.field(default_factory=list)

    @step
    async def count(self, ctx: Context) -> Next | Done:
        begun(ctx, n=self.n)
        self.seen.append(self.n)
        if self.n == self.hold_at and ctx.attempt == 0:
            await asyncio.sleep(self.seconds)
        if self.pause:
            await asyncio.sleep(self.pause)
        self.n += 1
        return Next(self.count) if self.n < self.total else Done(self.seen)


class Suicide(Machine, name="suicide"):
    """Kills its own process in the middle of its second step."""

    reached: int = 0

    @step
    async def start(self, ctx: Context) -> Next:
        self.reached = 1
        return Next(self.die)

    @step
    async def die(self, ctx: Context) -> Done:
        begun(ctx, reached=self.reached)
        os.kill(os.getpid(), signal.SIGKILL)
        return Done(None)


@job(name="quick")
async def quick(n: int) -> int:
    return n


@job(name="brief")
async def brief(n: int) -> int:
    """A short job that waits for something, so that a kill meets some of them in the middle."""
    os.write(_journal, b"#")
    await asyncio.sleep(0.005)
    return n


@job(name="flaky", retry=Backoff(max_attempts=5, initial=0.05, factor=1.0, jitter=False))
async def flaky(n: int, ctx: Context) -> int:
    begun(ctx, n=n)
    if ctx.attempt < 2:
        raise RuntimeError("not yet")
    return n


MACHINES = (Hold, Blocking, Mule, Chain, Suicide, quick, brief, flaky)


def main() -> None:
    """Runs a worker until it is ended."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    open_journal(settings.pop("journal"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    engine = Engine(settings.pop("url"), machines=MACHINES, **settings)
    for event in EVENTS:
        engine.on(event, lambda happened, kind=event: note(kind=kind, **dataclasses.asdict(happened)))
    asyncio.run(engine.run())
    note(kind="returned")


if __name__ == "__main__":
    main()
