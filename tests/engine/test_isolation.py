"""R1 and what keeps one run of a step from another: state, context variables, threads."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest
from engine_support import Build, Sql

from gen_durable import Backoff, Context, Done, Machine, Next, Retry, Sleep, job, step

var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")


@pytest.mark.parametrize("run_ahead", [True, False])
@pytest.mark.parametrize("threaded", [True, False])
async def test_a_step_starts_only_after_the_commit_of_the_one_before(
    build: Build, sql: Sql, run_ahead: bool, threaded: bool
) -> None:
    """R1: inside each step another connection sees the row at this step, with the state that the last one left."""
    loop = asyncio.get_running_loop()
    seen: list[tuple[str, int, Any, int]] = []

    async def look(ctx: Context) -> None:
        rows = await sql(
            "SELECT i.step, (i.state ->> 'n')::int, "
            "(SELECT max((t.state ->> 'n')::int) FROM {s}.transitions t WHERE t.instance_id = i.id), "
            "(SELECT count(*) FROM {s}.transitions t WHERE t.instance_id = i.id) "
            "FROM {s}.instances i WHERE i.id = %s",
            ctx.id,
        )
        seen.append(rows[0])  # type: ignore[arg-type]

    class Chain(Machine, history="states"):
        n: int = 0

        def go(self) -> Next | Done:
            self.n += 1
            return Done(self.n) if self.n == 8 else Next(self.odd if self.n % 2 else self.even)

        @step
        async def even(self, ctx: Context) -> Next | Done:
            await look(ctx)
            return self.go()

        @step
        def odd(self, ctx: Context) -> Next | Done:
            if threaded:
                asyncio.run_coroutine_threadsafe(look(ctx), loop).result(10)
            return self.go()

    async with build(Chain, run_ahead=run_ahead) as engine:
        assert await (await engine.insert(Chain())).result(timeout=10) == 8
    wanted = [("odd" if n % 2 else "even", n, n or None, n) for n in range(8) if threaded or n % 2 == 0]
    assert seen == wanted


@pytest.mark.parametrize("run_ahead", [True, False])
async def test_every_run_starts_from_freshly_decoded_state(build: Build, run_ahead: bool) -> None:
    """Section 3: an attribute that is no field, and an object shared from outside, never reach the next run."""
    shared: list[int] = [1]
    seen: list[Any] = []

    class Leaky(Machine, retry=Backoff(initial=0)):
        items: list[int] = []
        box: Any = None
        tried: int = 0

        @step
        async def a(self, ctx: Context) -> Next:
            self.cache = {"not": "durable"}
            self.items = shared
            self.box = (1, 2)
            return Next(self.b)

        @step
        async def b(self, ctx: Context) -> Retry | Next:
            seen.append((hasattr(self, "cache"), self.items is shared, list(self.items), self.box))
            shared.append(2)
            self.items.append(5)
            if ctx.attempt == 0:
                self.tried = 99
                raise OSError("the state of a failed run does not count")
            if ctx.attempt == 1:
                self.cache = 1
                return Retry()
            return Next(self.c)

        @step
        async def c(self, ctx: Context) -> Done:
            return Done([hasattr(self, "cache"), self.items, self.tried])

    async with build(Leaky, run_ahead=run_ahead) as engine:
        result = await (await engine.insert(Leaky())).result(timeout=10)
    assert seen == [
        (False, False, [1], [1, 2]),
        (False, False, [1], [1, 2]),
        (False, False, [1, 5], [1, 2]),
    ]
    assert result == [False, [1, 5, 5], 0]


async def test_defaults_are_not_shared_between_instances(build: Build) -> None:
    """Section 3: a mutable default belongs to one instance."""

    class Own(Machine):
        items: list[int] = []

        @step
        async def add(self, ctx: Context) -> Next:
            self.items.append(ctx.id)
            return Next(self.end)

        @step
        async def end(self, ctx: Context) -> Done:
            return Done(self.items)

    async with build(Own) as engine:
        inserted = await engine.insert_many(Own() for _ in range(20))
        for one in inserted:
            assert await one.handle.result(timeout=10) == [one.id]


async def test_context_variables_do_not_leak_from_step_to_step(build: Build) -> None:
    """Section 3: what a step sets in a context variable is seen by its own calls and by no other run."""
    seen: list[str] = []

    class Vars(Machine):
        left: int = 5

        @step
        async def awaiting(self, ctx: Context) -> Next:
            seen.append(var.get())
            var.set(f"a{ctx.id}")
            await asyncio.wait({asyncio.ensure_future(asyncio.Event().wait())}, timeout=0)
            assert var.get() == f"a{ctx.id}"
            return Next(self.quick)

        @step
        async def quick(self, ctx: Context) -> Next:
            seen.append(var.get())
            var.set(f"b{ctx.id}")
            return Next(self.threaded)

        @step
        def threaded(self, ctx: Context) -> Next | Done:
            seen.append(var.get())
            var.set(f"c{ctx.id}")
            self.left -= 1
            return Next(self.awaiting) if self.left else Done()

    async with build(Vars, queues={"default": 3}, threads=1) as engine:
        inserted = await engine.insert_many(Vars() for _ in range(6))
        for one in inserted:
            await one.handle.result(timeout=10)
    assert set(seen) == {"unset"}
    assert len(seen) == 6 * 15


async def test_a_step_that_is_a_plain_function_does_not_block_the_loop(build: Build) -> None:
    """Section 3: while a thread is at work, async steps of the same worker go on."""
    go = threading.Event()

    @job(max_attempts=1)
    def blocking() -> bool:
        return go.wait(20)

    @job
    async def quick(n: int) -> int:
        return n

    async with build(blocking, quick, queues={"default": 4}) as engine:
        blocked = [await engine.insert(blocking.bind()) for _ in range(3)]
        for n in range(20):
            assert await (await engine.insert(quick.bind(n=n))).result(timeout=10) == n
        assert {(await handle.get()).status for handle in blocked} == {"executing"}
        go.set()
        assert [await handle.result(timeout=10) for handle in blocked] == [True] * 3


async def test_attempt_and_times_of_the_context_are_those_of_the_row(build: Build, sql: Sql) -> None:
    """Section 3: the context of a run that went ahead and of one that was claimed say the same as the row."""
    seen: list[tuple[Any, ...]] = []

    class Told(Machine):
        @step
        async def a(self, ctx: Context) -> Next:
            return Next(self.b)

        @step
        async def b(self, ctx: Context) -> Sleep:
            await self.compare(ctx)
            return Sleep(0.01, self.c)

        @step
        async def c(self, ctx: Context) -> Retry | Done:
            await self.compare(ctx)
            return Retry() if ctx.attempt < 2 else Done()

        async def compare(self, ctx: Context) -> None:
            rows = await sql(
                "SELECT step, attempt, crashes, priority, key, worker, inserted_at, due_at "
                "FROM {s}.instances WHERE id = %s",
                ctx.id,
            )
            mine = (
                ctx.step, ctx.attempt, ctx.crashes, ctx.priority, ctx.key, ctx.worker, ctx.inserted_at, ctx.due_at,
            )  # fmt: skip
            seen.append((rows[0], mine))

    async with build(Told) as engine:
        await (await engine.insert(Told(), key="k", priority=4)).result(timeout=10)
    assert len(seen) == 4
    for row, mine in seen:
        assert row == mine
