"""SIGTERM: what a worker process does with what it holds before it ends."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import pytest
from chaos_worker import MACHINES, Blocking, Chain, Hold, Mule
from harness import Chaos, Client, until

from gen_durable import Engine

pytestmark = pytest.mark.crash

STATUSES = "SELECT status, attempt, crashes, count(*) FROM {schema}.instances GROUP BY 1, 2, 3"


async def test_a_drain_lets_running_steps_finish_and_hands_the_rest_back(
    chaos: Chaos, build: Callable[..., Engine]
) -> None:
    """R26: at SIGTERM no more is claimed, what runs ends, what was not started goes back as it was; exit code 0."""
    async with Client(build, MACHINES) as client:
        running = [await client.insert(Hold(seconds=1.5)) for _ in range(3)]
        process = await chaos.worker(queues={"default": 3})
        await until(lambda: len(chaos.notes("run")) == 3)
        waiting = [await client.insert(Hold(seconds=0.0)) for _ in range(5)]
        process.send(signal.SIGTERM)
        assert await process.exited() == 0
        assert [await handle.result(timeout=1) for handle in running] == [0, 0, 0]
        assert [(await handle.get()).status for handle in waiting] == ["runnable"] * 5
        assert await client.workers() == []
    assert chaos.rows(STATUSES) == [(0, 0, 0, 5)]
    assert chaos.notes("returned", pid=process.pid)
    (drain,) = chaos.notes("drain")
    assert drain["running"] == 3


async def test_a_drain_under_load_leaks_no_claim(chaos: Chaos, build: Callable[..., Engine]) -> None:
    """R26: workers with full buffers are drained one after the other; no claim is left, nothing cost an attempt."""
    async with Client(build, MACHINES) as client:
        await client.insert_many([Chain(total=3, pause=0.002) for _ in range(2000)])
        for round_ in range(1, 4):
            process = await chaos.worker(queues={"default": 20})
            await until(lambda round_=round_: len(chaos.notes("run")) > 500 * round_)  # type: ignore[misc]
            process.send(signal.SIGTERM)
            assert await process.exited(10) == 0
            assert chaos.executing() == 0
            assert await client.workers() == []
        assert chaos.left() > 0
    assert {row[:3] for row in chaos.rows(STATUSES)} == {(0, 0, 0)}
    # Each chain yielded between two steps: no number was run twice.
    runs = [(note["id"], note["n"]) for note in chaos.notes("run")]
    assert len(runs) == len(set(runs))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_cancels_what_still_runs(
    chaos: Chaos, build: Callable[..., Engine], number: signal.Signals
) -> None:
    """R26: a second signal cancels; the cancelled step goes back with the attempt it had, and runs elsewhere."""
    async with Client(build, MACHINES) as client:
        handle = await client.insert(Hold(seconds=4.0))
        process = await chaos.worker()
        await until(lambda: chaos.notes("run"))
        process.send(number)
        await until(lambda: chaos.notes("drain"))
        await asyncio.sleep(1.5)  # one that comes sooner counts as the same: a supervisor may send it too
        assert process.alive
        process.send(number)
        assert await process.exited(10) == 0
        assert not chaos.notes("woke")
        assert chaos.rows(STATUSES) == [(0, 0, 0, 1)]
        await chaos.worker()
        assert await handle.result(timeout=20) == 0
    assert [note["attempt"] for note in chaos.notes("run")] == [0, 0]


async def test_the_end_of_the_drain_timeout_cancels_what_still_runs(chaos: Chaos, build: Callable[..., Engine]) -> None:
    """R26: a step that outlives ``drain_timeout`` is cancelled and goes back."""
    async with Client(build, MACHINES) as client:
        await client.insert(Hold())
        process = await chaos.worker(drain_timeout=1.0)
        await until(lambda: chaos.notes("run"))
        asked_at = process.send(signal.SIGTERM)
        assert await process.exited(15) == 0
        assert 0.9 < time.monotonic() - asked_at < 10
        assert chaos.rows(STATUSES) == [(0, 0, 0, 1)]
        assert await client.workers() == []


async def test_a_thread_that_never_returns_does_not_keep_the_process(
    chaos: Chaos, build: Callable[..., Engine]
) -> None:
    """R26: nothing can end a thread, so a process does not wait for one."""
    async with Client(build, MACHINES) as client:
        await client.insert(Blocking(seconds=600.0))
        process = await chaos.worker(drain_timeout=0.5)
        await until(lambda: chaos.notes("run"))
        process.send(signal.SIGTERM)
        assert await process.exited(15) == 0
        assert chaos.rows(STATUSES) == [(0, 0, 0, 1)]


async def test_a_step_that_refuses_to_be_cancelled_does_not_keep_its_claim(
    chaos: Chaos, build: Callable[..., Engine]
) -> None:
    """R26: the drain ends in time and the row goes back; only the event loop itself still waits for such a task."""
    async with Client(build, MACHINES) as client:
        await client.insert(Mule(seconds=600.0))
        process = await chaos.worker(drain_timeout=0.5)
        await until(lambda: chaos.notes("run"))
        process.send(signal.SIGTERM)
        await until(lambda: chaos.rows(STATUSES) == [(0, 0, 0, 1)], 10)
        await until(lambda: not chaos.rows("SELECT 1 FROM {schema}.workers"), 10)
        assert await client.workers() == []


async def test_a_signal_right_after_the_start_ends_the_process(chaos: Chaos, build: Callable[..., Engine]) -> None:
    """R26: SIGTERM at any moment of a start ends the process soon, and leaves neither a claim nor a worker behind."""
    async with Client(build, MACHINES) as client:
        await client.insert_many([Chain(total=2) for _ in range(200)])
        for wait in (0.0, 0.02, 0.05, 0.1):
            process = chaos.spawn()
            await until(lambda process=process: started(chaos, process))  # type: ignore[misc]
            await asyncio.sleep(wait)  # the moment is what varies
            process.send(signal.SIGTERM)
            assert await process.exited(15) == 0
            assert chaos.executing() == 0
        assert await client.workers() == []


def started(chaos: Chaos, process: object) -> bool:
    return bool(chaos.rows("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'gen_durable w%%'"))
