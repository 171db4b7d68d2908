"""Workers that are killed with -9 while they run steps."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest
from chaos_worker import MACHINES, Chain, Hold, Suicide, quick
from harness import Chaos, Client, until

from gen_durable import BulkItem, Engine

pytestmark = pytest.mark.crash

ROUNDS = int(os.environ.get("GEN_DURABLE_KILL_ROUNDS", "3"))
CLAIMS = 200


async def test_a_killed_workers_step_runs_again_with_the_state_it_had(
    chaos: Chaos, build: Callable[..., Engine]
) -> None:
    """R1, R2: after kill -9 in the middle of its third step an instance goes on from its second commit, elsewhere."""
    async with Client(build, MACHINES) as client:
        handle = await client.insert(Chain(total=5, hold_at=2))
        first = await chaos.worker()
        await until(lambda: chaos.notes("run", n=2))
        await chaos.worker()
        first.kill()
        # What the killed run had changed in memory is not there: each number is seen once.
        assert await handle.result(timeout=30) == [0, 1, 2, 3, 4]
    runs = [(n["n"], n["attempt"], n["crashes"], n["pid"] == first.pid) for n in chaos.notes("run")]
    assert runs == [
        (0, 0, 0, True), (1, 0, 0, True), (2, 0, 0, True), (2, 1, 1, False), (3, 0, 0, False), (4, 0, 0, False),
    ]  # fmt: skip
    assert chaos.outcomes(handle.id) == [
        "count/0/next", "count/0/next", "count/0/crashed", "count/1/next", "count/0/next", "count/0/done",
    ]  # fmt: skip


@pytest.mark.parametrize("turn", range(ROUNDS))
async def test_200_claims_of_a_killed_worker_run_again_within_3_seconds(
    chaos: Chaos, build: Callable[..., Engine], turn: int
) -> None:
    """R25: all claims of a worker that was killed run again on another one within 3 s, ``attempt + 1``, none left."""
    async with Client(build, MACHINES) as client:
        inserted = await client.insert_many([Hold() for _ in range(CLAIMS)])
        first = await chaos.worker(queues={"default": CLAIMS})
        await until(lambda: len(chaos.notes("run")) == CLAIMS)
        second = await chaos.worker(queues={"default": CLAIMS})
        killed_at = first.kill()
        again = await until(lambda: len(found := chaos.notes("run", pid=second.pid)) >= CLAIMS and found)
        await chaos.settled()
        took = max(note["at"] for note in again) - killed_at
        print(f"round {turn}: {CLAIMS} claims ran again {took:.2f} s after the kill")
        assert took < 3.0
        assert sorted(note["id"] for note in again) == sorted(item.id for item in inserted)
        assert {(note["attempt"], note["crashes"], note["changed"]) for note in again} == {(1, 1, 0)}
        assert chaos.rows("SELECT status, attempt, crashes, count(*) FROM {schema}.finished GROUP BY 1, 2, 3") == [
            (6, 1, 1, CLAIMS)
        ]
        assert len(await client.workers()) == 1


async def test_rows_that_a_killed_worker_had_not_started_run_too(chaos: Chaos, build: Callable[..., Engine]) -> None:
    """R25: rows that a killed worker had claimed ahead are not forgotten either."""
    count = 300
    async with Client(build, MACHINES) as client:
        await client.insert_many([Chain(total=3, pause=0.005) for _ in range(count)])
        first = await chaos.worker(queues={"default": 5})
        await until(lambda: len(chaos.notes("run")) > 100)
        first.kill()
        assert chaos.left() > 0
        await chaos.worker()
        await chaos.settled()
    assert chaos.rows("SELECT count(*) FROM {schema}.finished") == [(count,)]


async def test_a_step_that_kills_its_worker_ends_after_max_crashes(chaos: Chaos, build: Callable[..., Engine]) -> None:
    """R25: a crash loop ends: after ``max_crashes`` deaths in one step the instance is failed, and says why."""
    async with Client(build, MACHINES) as client:
        handle = await client.insert(Suicide())
        for death in range(1, 4):
            process = chaos.spawn(max_crashes=3)
            assert await process.exited() == -9
            await until(lambda death=death: len(chaos.notes("run")) == death)  # type: ignore[misc]
        survivor = await chaos.worker(max_crashes=3)
        innocent = await client.insert(quick.bind(n=5))
        assert await innocent.result(timeout=30) == 5
        found = await until_terminal(client, handle.id)
        assert survivor.alive
        assert (found.status, found.step, found.crashes, found.state) == ("failed", "die", 3, {"reached": 1})
        assert found.error is not None
        assert "died 3 times" in found.error["message"]
    assert [(n["attempt"], n["crashes"]) for n in chaos.notes("run")] == [(0, 0), (1, 1), (2, 2)]
    assert chaos.outcomes(handle.id) == ["start/0/next", *(f"die/{n}/crashed" for n in range(3)), "die/3/failed"]


async def until_terminal(client: Engine, instance: int) -> object:
    """The snapshot of an instance once it has ended."""
    with pytest.raises(Exception, match="failed"):
        await client.result(instance, timeout=30)
    return await client.get(instance)


async def test_a_killed_workers_key_stays_taken_and_its_priority_stays(
    chaos: Chaos, build: Callable[..., Engine]
) -> None:
    """R3, R16: a reclaim changes neither key nor priority nor queue, and the key is free when the instance ends."""
    async with Client(build, MACHINES) as client:
        item = BulkItem(Hold(), key="order:1", priority=-7)
        (inserted,) = await client.insert_many([item])
        first = await chaos.worker()
        await until(lambda: chaos.notes("run"))
        first.kill()
        (twin,) = await client.insert_many([item])
        assert twin.duplicate
        assert twin.id == inserted.id
        await chaos.worker()
        assert await inserted.handle.result(timeout=30) == 1
        found = await client.get("order:1")
        assert (found.priority, found.queue, found.id) == (-7, "default", inserted.id)
        (after,) = await client.insert_many([item])
        assert not after.duplicate
    assert Counter(note["attempt"] for note in chaos.notes("run", id=inserted.id)) == {0: 1, 1: 1}
