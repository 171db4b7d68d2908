"""The smallest whole runs."""

from __future__ import annotations

from collections.abc import Callable

from gen_durable import Context, Done, Engine, Machine, Next, job, step


@job
async def double(n: int) -> int:
    return n * 2


class Counter(Machine):
    n: int = 0

    @step
    async def one(self, ctx: Context) -> Next:
        self.n += 1
        return Next(self.two)

    @step
    async def two(self, ctx: Context) -> Next | Done:
        self.n += 1
        return Next(self.one) if self.n < 6 else Done(self.n)


async def test_a_job_and_a_machine_run_to_their_end(build: Callable[..., Engine]) -> None:
    async with build(double, Counter) as engine:
        first = await engine.insert(double.bind(n=21))
        second = await engine.insert(Counter())
        assert await first.result(timeout=10) == 42
        assert await second.result(timeout=10) == 6
        assert [t.outcome for t in await engine.history(second.id)] == ["next"] * 5 + ["done"]
