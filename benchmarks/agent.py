"""The process that runs one engine, in that engine's environment.

``python -m benchmarks.agent MODULE COMMAND``: its arguments come as one line of JSON on stdin, its answer
goes as another to stdout. A worker ends when its stdin is closed, so none outlives the run that started it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from benchmarks.adapter import Adapter, Asking, Client, Families, Signals
from benchmarks.board import Board

CHUNK = 1000
PACE = 0.02
GRACE = 15.0
WARM = 8
"""Numbers 0 to 7 of the board's marks belong to the warm-up."""

Command = Callable[[Adapter, Board, dict[str, Any]], Awaitable[dict[str, Any]]]


async def prepare(adapter: Adapter, board: Board, args: dict[str, Any]) -> dict[str, Any]:
    """Create the schema, where it is not there yet, and insert ``count`` of ``kind`` before the clock runs."""
    if not args.get("ready"):
        await adapter.setup()
    async with adapter.client() as client:
        await _bulk(client, args["kind"], args["count"])
    return {}


async def insert(adapter: Adapter, board: Board, args: dict[str, Any]) -> dict[str, Any]:
    """Time ``count`` inserts: one by one, each awaited, or in calls of 1,000."""
    async with adapter.client() as client:
        await client.one("noop", 0)
        await client.many("noop", 10)
        cpu, start = time.process_time(), time.monotonic()
        if args["bulk"]:
            await _bulk(client, "noop", args["count"])
        else:
            for number in range(args["count"]):
                await client.one("noop", number)
        return {"seconds": time.monotonic() - start, "cpu": time.process_time() - cpu}


async def worker(adapter: Adapter, board: Board, args: dict[str, Any]) -> dict[str, Any]:
    """Work until stdin is closed."""
    closed = asyncio.Event()
    threading.Thread(target=_watch, args=(asyncio.get_running_loop(), closed), daemon=True).start()
    board.wait_at_gate()
    async with adapter.worker():
        await closed.wait()
    return {}


async def latency(adapter: Adapter, board: Board, args: dict[str, Any]) -> dict[str, Any]:
    """Time from the call of insert to the start of the body; the worker is another process."""
    async with adapter.client() as client:
        return {"ms": await _latencies(partial(client.one, "mark"), board, args["count"])}


async def latency_local(adapter: Adapter, board: Board, args: dict[str, Any]) -> dict[str, Any]:
    """The same with the worker in this process."""
    async with adapter.worker() as client:
        return {"ms": await _latencies(partial(client.one, "mark"), board, args["count"])}


async def results(adapter: Adapter, board: Board, args: dict[str, Any]) -> dict[str, Any]:
    """Time from the call of insert to the return of the call that waits for the result; ``local``: run here."""
    async with adapter.worker() if args["local"] else adapter.client() as client:
        asking = cast("Asking", client)
        for number in range(WARM):
            await _asked(asking, number)
        await asyncio.sleep(0.5)
        return {"ms": [await _asked(asking, number) for number in range(WARM, WARM + args["count"])]}


async def burst(adapter: Adapter, board: Board, args: dict[str, Any]) -> dict[str, Any]:
    """Time jobs from the first call of insert to the start of the last body; the worker is another process."""
    async with adapter.client() as client:
        start, wanted = time.monotonic(), board.hits() + args["count"]
        await _bulk(client, "noop", args["count"])
        while board.hits() < wanted:
            await asyncio.sleep(0.002)
        return {"seconds": time.monotonic() - start}


async def wakeups(adapter: Adapter, board: Board, args: dict[str, Any]) -> dict[str, Any]:
    """Time from the call of signal to the start of the body that it wakes; ``local``: in this very process."""
    async with adapter.worker() if args["local"] else adapter.client() as client:
        signals = cast("Signals", client)
        total = WARM + args["count"]
        await signals.many("waiter", total)
        await _until_parked(signals, total)
        return {"ms": await _latencies(signals.signal, board, args["count"])}


async def family(adapter: Adapter, board: Board, args: dict[str, Any]) -> dict[str, Any]:
    """Time the same jobs inserted and run, and spawned, run and joined: plain, children, children, plain."""
    async with adapter.worker() as client:
        families = cast("Families", client)
        spent = {"plain": 0.0, "children": 0.0}
        await _plain(families, min(500, args["count"]))
        await families.family(min(500, args["count"]))
        for which in ("plain", "children", "children", "plain"):
            start = time.monotonic()
            await (_plain if which == "plain" else _family)(families, args["count"])
            spent[which] += (time.monotonic() - start) / 2
        return spent


async def large_family(adapter: Adapter, board: Board, args: dict[str, Any]) -> dict[str, Any]:
    """Time one parent from its insertion to its end."""
    async with adapter.worker() as client:
        start = time.monotonic()
        await cast("Families", client).family(args["count"])
        return {"seconds": time.monotonic() - start}


async def _plain(client: Families, count: int) -> None:
    start = time.monotonic()
    await client.many("noop", count)
    while await client.left():
        # A hundredth of the time so far: a slow engine is not to be slowed down by being asked.
        await asyncio.sleep(max(0.002, (time.monotonic() - start) / 100))


async def _family(client: Families, count: int) -> None:
    await client.family(count)


async def _until_parked(client: Signals, total: int, limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while (parked := await client.parked()) < total:
        if time.monotonic() > end:
            raise TimeoutError(f"{total} waiters inserted, {parked} wait for a signal after {limit:g} s")
        await asyncio.sleep(0.05)


async def _bulk(client: Client, kind: str, count: int) -> None:
    for offset in range(0, count, CHUNK):
        await client.many(kind, min(CHUNK, count - offset))


async def _asked(client: Asking, number: int) -> float:
    """Milliseconds; then the rest of the pace, so that the engine is idle again."""
    start = time.monotonic()
    answer = await client.ask(number)
    took = time.monotonic() - start
    if answer != number:
        raise ValueError(f"job {number} was to answer {number}, and answered {answer!r}")
    await asyncio.sleep(max(0.0, PACE - took))
    return 1000 * took


async def _latencies(start_one: Callable[[int], Awaitable[None]], board: Board, count: int) -> list[float]:
    for number in range(WARM):
        await start_one(number)
        await _marked(board, number)
    await asyncio.sleep(0.5)
    starts = []
    due = time.monotonic()
    for number in range(WARM, WARM + count):
        starts.append(time.monotonic())
        await start_one(number)
        due = max(due + PACE, time.monotonic())
        await asyncio.sleep(due - time.monotonic())
    await _marked(board, WARM + count - 1)
    return [1000 * ((await _marked(board, number)) - start) for number, start in enumerate(starts, start=WARM)]


async def _marked(board: Board, number: int, limit: float = 20.0) -> float:
    end = time.monotonic() + limit
    while not board.marked(number):
        if time.monotonic() > end:
            raise TimeoutError(f"job {number} was inserted and did not start within {limit:g} s")
        await asyncio.sleep(0.005)
    return board.marked(number)


def _watch(loop: asyncio.AbstractEventLoop, closed: asyncio.Event) -> None:
    """Tell of the end of stdin; an engine that does not stop then is ended the hard way."""
    sys.stdin.read()
    loop.call_soon_threadsafe(closed.set)
    time.sleep(GRACE)
    os._exit(1)


COMMANDS: dict[str, Command] = {
    "prepare": prepare,
    "insert": insert,
    "worker": worker,
    "latency": latency,
    "latency_local": latency_local,
    "results": results,
    "burst": burst,
    "wakeups": wakeups,
    "family": family,
    "large_family": large_family,
}


def main(argv: list[str]) -> None:
    module, command = argv
    args = json.loads(sys.stdin.readline())
    adapter_class = importlib.import_module(module).Adapter
    board = Board(Path(args["board"]), args.get("slot", 0))
    adapter = adapter_class(args["url"], board, args["options"])
    run: Callable[..., Any] = asyncio.run
    if adapter_class.loop == "uvloop":
        run = importlib.import_module("uvloop").run
    result = run(COMMANDS[command](adapter, board, args))
    print(json.dumps(result), flush=True)
    # Some peers keep threads that never end; the measured part is over and everything is committed.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
