"""Owners that come back late: paused, cut off, declared dead, or the same one with a second claim."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest
from chaos_worker import MACHINES, Blocking, Chain, Hold, quick
from harness import Chaos, Client, until
from proxy import Proxy
from stepper import Stepper, ending, going_back, going_on

from gen_durable import Engine
from gen_durable.events import CommitEvent, StaleEvent

pytestmark = pytest.mark.crash

A, B = 11, 22


@pytest.fixture
async def stepper(connect: Callable[[], Any], migrated: str) -> Stepper:
    """A session on the test's schema, with two workers registered."""
    stepper = Stepper(await connect(), migrated)
    await stepper.register(A)
    await stepper.register(B)
    return stepper


LATE = {"goes on": going_on, "goes back": going_back, "ends": ending}


@pytest.mark.parametrize("kind", LATE)
async def test_an_outcome_under_an_old_claim_changes_nothing(
    stepper: Stepper, build: Callable[..., Engine], kind: str
) -> None:
    """R4: after a reclaim the old outcome is refused: nobody has the row, another worker has it, or the same has."""
    async with Client(build, MACHINES) as client:
        handle = await client.insert(Chain())
    late = LATE[kind]
    (rev,) = (await stepper.claim(A)).values()
    await stepper.silence(A, 60)
    assert await stepper.reap() == 1
    before = await stepper.row(handle.id)
    assert (before["status"], before["attempt"], before["crashes"]) == (0, 1, 1)
    assert await stepper.commit(A, late(handle.id, rev)) == set()
    assert await stepper.release(A, (handle.id, rev)) == 0

    (rev_of_b,) = (await stepper.claim(B)).values()
    assert await stepper.commit(A, late(handle.id, rev)) == set()
    assert await stepper.commit(A, late(handle.id, rev_of_b)) == set(), "the rev of another worker's claim"
    assert await stepper.release(B, (handle.id, rev_of_b)) == 1

    # The same worker, known again under the same id, claims the row a second time: no ABA.
    await stepper.register(A)
    (second,) = (await stepper.claim(A)).values()
    assert second > rev_of_b > rev
    before = await stepper.row(handle.id)
    assert await stepper.commit(A, late(handle.id, rev)) == set()
    assert await stepper.release(A, (handle.id, rev)) == 0
    assert await stepper.row(handle.id) == before
    # Both in one batch: the old one changes nothing, and the answer tells which of the two it was.
    answer = await stepper.commit(A, late(handle.id, rev), late(handle.id, second))
    assert answer == {(handle.id, second + 1)}
    entries = await stepper.ask("reading/history", id=handle.id)
    assert [entry[3] for entry in entries] == [6, late(0, 0)["kind"]]


async def test_a_reclaim_under_a_commit_in_progress_waits_for_nobody(
    connect: Callable[[], Any], stepper: Stepper, build: Callable[..., Engine]
) -> None:
    """R3, R4, R25: a reaper passes by a row that is just being committed; of the two exactly one takes effect."""
    async with Client(build, MACHINES) as client:
        handle = await client.insert(Chain())
    (rev,) = (await stepper.claim(A)).values()
    other = Stepper(await connect(), stepper.schema)
    async with stepper.connection.transaction():
        assert await stepper.commit(A, going_on(handle.id, rev))
        await other.silence(A, 60)
        assert await other.reap() == 0
    assert await other.query("SELECT id FROM {schema}.workers WHERE id = %s", A) == []
    assert await other.reap() == 1, "the next pass takes it, though its worker's row is gone by now"
    assert (await other.row(handle.id))["rev"] == rev + 2
    # The other way round: the outcome waits for the reclaim, then finds that it is too late.
    (rev,) = (await stepper.claim(B)).values()
    await stepper.silence(B, 60)
    async with other.connection.transaction():
        assert await other.reap() == 1
        late = asyncio.create_task(stepper.commit(B, ending(handle.id, rev)))
        while not await other.query(
            "SELECT 1 FROM pg_locks WHERE NOT granted AND pid = %s", stepper.connection.info.backend_pid
        ):
            await asyncio.sleep(0.005)  # it waits in the server: there is no event for that
    assert await late == set()
    assert (await other.row(handle.id))["status"] == 1, "its second death: it comes back after a while"


async def test_the_flusher_tells_two_claims_of_one_row_apart(
    build: Callable[..., Engine], connect: Callable[[], Any], migrated: str
) -> None:
    """R4: the outcomes of an old and a new claim of one row, in one commit: the old one is refused, and counted."""
    gates: dict[int, asyncio.Event] = {}
    started: asyncio.Queue[int] = asyncio.Queue()
    stale: list[StaleEvent] = []
    commits: list[CommitEvent] = []
    engine = build(gated_job(gates, started))
    engine.on("stale", stale.append)
    engine.on("commit", commits.append)
    stepper = Stepper(await connect(), migrated)
    async with engine:
        machine = engine.settings.machines[0].cls
        handle = await engine.insert(machine())
        first = await started.get()
        # As a reaper does it to a worker that it believes dead, while this one lives on under the same id.
        await stepper.query(
            "UPDATE {schema}.instances SET status = 0, worker = NULL, rev = rev + 1, attempt = attempt + 1"
        )
        await stepper.ask("queues/wake", messages=["q:default"])
        second = await started.get()
        assert (first, second) == (0, 1)
        commits.clear()
        gates[0].set()
        gates[1].set()
        assert await handle.result(timeout=10) == 1
        await until(lambda: sum(commit.size + commit.stale for commit in commits) == 2)
    assert [(event.id, event.step) for event in stale] == [(handle.id, "run")]
    assert [(commit.size, commit.stale) for commit in commits] == [(1, 1)], "both went in one commit"
    entries = await stepper.ask("reading/history", id=handle.id)
    assert [(entry[2], entry[3]) for entry in entries] == [(1, 3)]


def gated_job(gates: dict[int, asyncio.Event], started: asyncio.Queue[int]) -> Any:
    from gen_durable import Context, job

    @job(name="gated")
    async def gated(ctx: Context) -> int:
        gates[ctx.attempt] = asyncio.Event()
        started.put_nowait(ctx.attempt)
        await gates[ctx.attempt].wait()
        return ctx.attempt

    return gated


SHORT = {"lease": 1.5, "heartbeat": 0.5, "poll_interval": 0.2}


@pytest.mark.parametrize("machine", [Hold, Blocking])
async def test_a_worker_that_was_stopped_past_its_lease_commits_nothing_old(
    chaos: Chaos, build: Callable[..., Engine], machine: type[Hold | Blocking]
) -> None:
    """R4, R25: SIGSTOP past the lease: another worker ends the instance; after SIGCONT the old run is void."""
    async with Client(build, MACHINES) as client:
        # It is over when the process wakes up, so that its outcome is ready at once, before anybody tells of the death.
        handle = await client.insert(machine(seconds=0.7))
        first = await chaos.worker(**SHORT)
        number = await chaos.registered(first)
        await until(lambda: chaos.notes("run"))
        first.send(signal.SIGSTOP)
        await until(lambda: first.state() == "T")
        second = await chaos.worker(**SHORT)
        assert await handle.result(timeout=30) == 1
        assert chaos.notes("worker_dead", id=number)
        before = chaos.rows("SELECT * FROM {schema}.finished")
        first.send(signal.SIGCONT)
        assert await chaos.registered(first, but=number) != number
        # The worker that came back is of use again.
        second.kill()
        assert await (await client.insert(quick.bind(n=3))).result(timeout=30) == 3
    assert chaos.rows("SELECT * FROM {schema}.finished WHERE id = %s", handle.id) == before
    assert chaos.outcomes(handle.id) == ["wait/0/crashed", "wait/1/done"]


@pytest.mark.parametrize("machine", [Hold, Blocking])
async def test_a_stopped_worker_that_claims_its_row_again_commits_only_the_new_claim(
    chaos: Chaos, build: Callable[..., Engine], machine: type[Hold | Blocking]
) -> None:
    """R4, R25: the only worker is stopped past its lease; its row is reclaimed, and after SIGCONT the same process
    claims it again while the old run is still at work (a thread can't be ended): only the new run's outcome counts."""
    async with Client(build, MACHINES) as client:
        handle = await client.insert(machine(seconds=3.0))
        first = await chaos.worker(**SHORT)
        number = await chaos.registered(first)
        await until(lambda: chaos.notes("run"))
        first.send(signal.SIGSTOP)
        await until(lambda: first.state() == "T")
        # A reaper that runs no steps: the row goes back, and nobody else takes it.
        reaper = await chaos.worker(queues={"other": 1}, **SHORT)
        await until(lambda: chaos.executing() == 0)
        first.send(signal.SIGCONT)
        assert await handle.result(timeout=30) == 1
        if machine is Blocking:
            await until(lambda: chaos.notes("woke"), why="the end of the old thread")
        assert await (await client.insert(quick.bind(n=3))).result(timeout=30) == 3
        found = await client.get(handle.id)
    assert reaper.alive
    assert {(n["attempt"], n["pid"], n["worker"] == number) for n in chaos.notes("run")} == {
        (0, first.pid, True),
        (1, first.pid, False),
    }
    assert (found.result, found.attempt, found.crashes) == (1, 1, 1)
    assert chaos.outcomes(handle.id) == ["wait/0/crashed", "wait/1/done"]


async def test_a_worker_whose_heartbeats_are_cut_off_is_refused_and_starts_anew(
    chaos: Chaos, build: Callable[..., Engine], proxy: Proxy
) -> None:
    """R4, R25: heartbeats don't arrive, claims and commits would: declared dead, it commits nothing old (counted as
    stale), takes nothing under its dead id, and goes on under a new one when the link is there again."""
    async with Client(build, MACHINES) as client:
        handle = await client.insert(Hold(seconds=4.0))
        first = await chaos.worker(listen_url=proxy.url, **SHORT)
        number = await chaos.registered(first)
        await until(lambda: chaos.notes("run"))
        proxy.freeze()
        reaper = await chaos.worker(queues={"other": 1}, **SHORT)
        await until(lambda: chaos.notes("worker_dead", id=number))
        # The row is due again, and its old worker still runs, claims and doesn't know. It must get nothing: else the
        # reaper takes the row away from it every second, and counts a crash each time.
        extra = await client.insert(quick.bind(n=1))
        (stale,) = await until(lambda: chaos.notes("stale"))
        assert (stale["id"], stale["step"], stale["pid"]) == (handle.id, "wait", first.pid)
        waiting = chaos.rows("SELECT status, attempt, crashes FROM {schema}.instances ORDER BY id")
        assert waiting == [(0, 1, 1), (0, 0, 0)]
        proxy.thaw()
        assert await handle.result(timeout=30) == 1
        assert await extra.result(timeout=30) == 1
    assert reaper.alive
    assert chaos.outcomes(handle.id) == ["wait/0/crashed", "wait/1/done"]
