"""The first children of a spawn come into being as claims of their parent's worker, once its transaction is there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_support import LONG, Build, Seen, Sql, eventually, moment
from test_births import kept, quiet, worker_of

from gen_durable import Backoff, Context, Done, Engine, Machine, Spawn, child, job, step
from gen_durable._runtime.link import LinkDown
from gen_durable._store.operation import Operation


class Family(Machine):
    count: int
    taken: str | None = None
    later: bool = False

    @step(retry=Backoff(max_attempts=1))
    async def start(self, ctx: Context) -> Spawn:
        children: list[Any] = [leaf.bind(n=n) for n in range(self.count)]
        if self.later:
            children[1] = child(leaf.bind(n=1), delay=0.05)
        if self.taken is not None:
            children.append(child(leaf.bind(n=-1), key=self.taken))
        return Spawn(children, then=self.join)

    @step
    async def join(self, ctx: Context) -> Done:
        return Done([found.result for found in ctx.children])


@job
async def leaf(n: int) -> int:
    return n


def family(build: Build, **settings: Any) -> Any:
    return quiet(build, Family, leaf, **settings)


async def born(sql: Sql) -> list[int]:
    """The revs of the ended leaves in the order of their ids: 1 was born claimed, 2 was claimed."""
    return [rev for (rev,) in await sql("SELECT rev FROM {s}.finished WHERE parent_id IS NOT NULL ORDER BY id")]


async def test_as_many_children_as_would_start_at_once_are_born_as_claims(build: Build, sql: Sql) -> None:
    """R3, R15, R19: the others are claimed; the join gets all, in order."""
    async with family(build, queues={"default": 4}) as engine:
        handle = await engine.insert(Family(count=7))
        assert await handle.result(timeout=LONG) == list(range(7))
        assert await born(sql) == [1, 1, 1, 1, 2, 2, 2]
        assert kept(worker_of(engine)) == 0


async def test_a_child_that_is_not_due_ends_them(build: Build, sql: Sql) -> None:
    """R17: what comes behind it is claimed in its turn."""
    async with family(build) as engine:
        handle = await engine.insert(Family(count=3, later=True))
        assert await handle.result(timeout=LONG) == [0, 1, 2]
        assert await born(sql) == [1, 2, 2]


async def test_of_a_spawn_that_is_refused_no_child_is_a_claim(build: Build, sql: Sql) -> None:
    """R3, R16: the key of the last child is taken, and all of it is rolled back; nothing is kept."""
    async with family(build) as engine:
        await engine.insert(leaf.bind(n=9), key="taken", delay=3600)
        starts = Seen(engine, "step")
        handle = await engine.insert(Family(count=3, taken="taken"))
        assert await eventually(lambda: _failed(engine, handle.id))
        assert await born(sql) == []
        assert [event.machine for event in starts.all if event.machine == leaf.__name__] == []
        assert await eventually(lambda: _nothing_held(engine))
        assert kept(worker_of(engine)) == 0


async def _nothing_held(engine: Engine) -> bool:  # the row says it first, then the answer to the commit
    return not worker_of(engine)._held


async def _failed(engine: Engine, id_: int) -> bool:
    return (await engine.get(id_)).status == "failed"


async def test_children_of_a_commit_without_an_answer_run_once(
    build: Build, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3, R27: the transaction is there, and its worker does not know: it looks, and gives the claims back."""
    async with family(build, queues={"default": 4}) as engine:
        link = worker_of(engine)._flusher._second.link
        together = link.together

        async def cut(operation: Operation[Any]) -> Any:
            monkeypatch.undo()
            await together(operation)
            raise LinkDown("cut behind the commit")

        monkeypatch.setattr(link, "together", cut)
        handle = await engine.insert(Family(count=3))
        assert await handle.result(timeout=LONG) == [0, 1, 2]
        assert await born(sql) == [3, 3, 3]
        assert [crashes for (crashes,) in await sql("SELECT crashes FROM {s}.finished")] == [0] * 4


async def test_children_start_only_when_their_parents_transaction_is_there(
    build: Build, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1, R3: until its commit has been answered none of them runs."""
    async with family(build) as engine:
        link = worker_of(engine)._flusher._second.link
        together = link.together
        reached, go = asyncio.Event(), asyncio.Event()

        async def held_up(operation: Operation[Any]) -> Any:
            answer = await together(operation)
            reached.set()
            await go.wait()
            return answer

        monkeypatch.setattr(link, "together", held_up)
        starts = Seen(engine, "step")
        handle = await engine.insert(Family(count=3))
        await reached.wait()
        await worker_of(engine)._claimer.check()  # nor is what is on its way taken for lost
        await moment(0.05)
        assert [event.step for event in starts.all] == ["start"]
        go.set()
        assert await handle.result(timeout=LONG) == [0, 1, 2]
        assert await born(sql) == [1, 1, 1]
