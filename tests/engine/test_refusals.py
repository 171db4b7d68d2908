"""R8: what a step may not return, and state or results that can't be stored, are errors of that step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from engine_support import Build, Seen, Sql, ended, failure

from gen_durable import Backoff, Context, Done, Engine, Job, Machine, Next, Retry, Sleep, Stop, job, step

CASES: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "nothing": (lambda self: None, "InvalidOutcome", "returned None"),
    "a string": (lambda self: "ship", "InvalidOutcome", "returned 'ship'"),
    "a class": (lambda self: Done, "InvalidOutcome", "Next, Retry, Sleep, Await, Spawn, Done or Stop"),
    "a method": (lambda self: self.other, "InvalidOutcome", "returned <bound method"),
    "a list of outcomes": (lambda self: [Done()], "InvalidOutcome", "returned [Done"),
    "an unknown step": (lambda self: Next("ship"), "InvalidOutcome", "goes to 'ship', which is not a step"),
    "a sleep to an unknown step": (lambda self: Sleep(1, "ship"), "InvalidOutcome", "its steps are bad, other"),
    "a step of another machine": (lambda self: Next(Elsewhere.away), "InvalidOutcome", "'away', which is not a step"),
    "an unknown queue": (lambda self: Next(self.other, queue="nope"), "InvalidArgument", "there is no queue 'nope'"),
    "a negative delay": (lambda self: Next(self.other, delay=-1), "InvalidArgument", "0 or more"),
    "a priority out of range": (lambda self: Next(self.other, priority=40000), "InvalidArgument", "32767"),
    "a called step": (lambda self: Next(self.other(None)), "InvalidArgument", "without calling it"),
    "a result with NaN": (lambda self: Done(float("nan")), "InvalidPayload", "nan"),
    "a result with infinity": (lambda self: Done([{"x": float("-inf")}]), "InvalidPayload", "-inf"),
    "a result with NUL": (lambda self: Done("a\0b"), "InvalidPayload", "NUL"),
    "a result with a NUL key": (lambda self: Done({"\0": 1}), "InvalidPayload", "NUL"),
    "a result with half a character": (lambda self: Done("\ud800"), "InvalidPayload", "surrogate"),
    "a result without a form": (lambda self: Done(object()), "InvalidPayload", "can't be written as JSON"),
    "a result that contains itself": (lambda self: Done(_loop()), "InvalidPayload", "contains itself"),
    "too large a result": (lambda self: Done("x" * 3000), "InvalidPayload", "more than the limit of 2000"),
    "a state of a wrong type": (lambda self: self.put("seven"), "InvalidState", "field 'n' is 'seven'"),
    "a state with NaN": (lambda self: self.put(x=float("nan")), "InvalidState", "nan"),
    "a state with NUL": (lambda self: self.put(x=["\0"]), "InvalidState", "NUL"),
    "a state with half a character": (lambda self: self.put(x="\udfff"), "InvalidState", "surrogate"),
    "too large a state": (lambda self: self.put(x="x" * 3000), "InvalidState", "max_state_bytes=2000"),
    "a state without a form": (lambda self: self.put(x=object()), "InvalidState", "can't be written as JSON"),
    "a deleted field": (lambda self: delattr(self, "n"), "InvalidState", "field 'n' has no value"),
}


def _loop() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


class Elsewhere(Machine):
    @step
    async def away(self, ctx: Context) -> Done:
        return Done()


class Bad(Machine):
    case: str
    threaded: bool = False
    n: int = 0
    x: Any = None

    def put(self, n: Any = 0, x: Any = None) -> Done:
        self.n, self.x = n, x
        return Done()

    @step
    async def bad(self, ctx: Context) -> Any:
        return CASES[self.case][0](self)

    @step
    async def other(self, ctx: Context) -> Done:
        return Done()


class BadInThread(Bad):
    @step(initial=True)
    def bad_too(self, ctx: Context) -> Any:
        return CASES[self.case][0](self)


async def test_everything_else_that_a_step_returns_fails_it_with_a_message(build: Build) -> None:
    """R8: an error of the step, naming what came back and from where; the state is the one before; never a loop."""
    async with build(Bad, Elsewhere, max_state_bytes=2000) as engine:
        runs = Seen(engine, "step")
        handles = {case: await engine.insert(Bad(case=case)) for case in CASES}
        for case, handle in handles.items():
            error = await failure(handle)
            _, kind, message = CASES[case]
            assert error["type"] == f"gen_durable.errors.{kind}", case
            assert message in error["message"], case
            assert "bad" in error["message"] or "Bad" in error["message"] or kind == "InvalidArgument", case
            found = await handle.get()
            assert found.state == {"case": case, "threaded": False, "n": 0, "x": None}, case
            assert found.result is None, case
        assert len(runs.all) == len(CASES)


async def test_the_same_in_a_thread(build: Build) -> None:
    """R8 for plain functions."""
    async with build(BadInThread, max_state_bytes=2000) as engine:
        handles = {case: await engine.insert(BadInThread(case=case)) for case in CASES}
        for case, handle in handles.items():
            error = await failure(handle)
            assert error["type"] == f"gen_durable.errors.{CASES[case][1]}", case


async def test_a_coroutine_that_comes_back_is_refused_and_closed(build: Build) -> None:
    """R8: a forgotten ``await`` gives a clear error, and no warning of a coroutine that was never awaited."""

    class Forgot(Machine):
        @step
        def first(self, ctx: Context) -> Any:
            return self.second(ctx)

        @step
        async def second(self, ctx: Context) -> Done:
            return Done()

    async with build(Forgot) as engine:
        error = await failure(await engine.insert(Forgot()))
    assert "coroutine" in error["message"]
    assert "await" in error["message"]


async def test_a_bad_outcome_follows_the_retry_policy(build: Build) -> None:
    """R8: it goes the way of an exception: policy, ``on_error``, attempts."""
    asked: list[str] = []

    class Twice(Machine, retry=Backoff(max_attempts=3, initial=0)):
        n: int = 0

        @step
        async def run_it(self, ctx: Context) -> Any:
            self.n = "not a number" if ctx.attempt < 2 else 7  # type: ignore[assignment]
            return Done(self.n)

    class Asked(Machine):
        x: Any = None

        @step
        async def only(self, ctx: Context) -> Any:
            self.x = float("inf")
            return Retry()

        async def on_error(self, error: Any, ctx: Context) -> Stop:
            asked.append(f"{type(error).__name__} {self.x}")
            return Stop("no good")

    async with build(Twice, Asked) as engine:
        one, two = await engine.insert(Twice()), await engine.insert(Asked())
        assert await one.result(timeout=10) == 7
        history = await engine.history(one.id)
        assert (await failure(two))["message"] == "no good"
    assert [t.outcome for t in history] == ["retry", "retry", "done"]
    assert [t.error and t.error["type"] for t in history] == ["gen_durable.errors.InvalidState"] * 2 + [None]
    assert asked == ["InvalidState None"]


async def test_a_job_that_returns_an_outcome_is_told_that_it_can_not(build: Build) -> None:
    """R8: a job's return value is its result; an outcome in its place is a mistake, not a result."""

    @job(max_attempts=1)
    async def confused() -> Any:
        return Done(5)

    class Confused(Job, max_attempts=1):
        async def run(self, ctx: Context) -> Any:
            return Retry(5)

    async with build(confused, Confused) as engine:
        for made in (confused.bind(), Confused()):
            error = await failure(await engine.insert(made))
            assert error["type"] == "gen_durable.errors.InvalidOutcome"
            assert "a job returns its result" in error["message"]


REFUSED: dict[str, Callable[[], Any]] = {
    "number": lambda: msgspec.Raw(b'{"n": 1e999999}'),
    "depth": lambda: msgspec.Raw(b"[" * 40_000 + b"]" * 40_000),
    "nonsense": lambda: msgspec.Raw(b"{nonsense"),
}


async def _together(engine: Engine, ready: asyncio.Event, made: list[Machine]) -> list[Any]:
    inserted = await engine.insert_many(made)
    ready.set()
    return [await ended(one.handle) for one in inserted]


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_only_postgres_refuses_fails_its_instance_alone(build: Build, kind: str) -> None:
    """R8: a value that passes every check of ours and that Postgres can't hold fails that row, not its batch."""
    ready = asyncio.Event()

    @job(max_attempts=1)
    async def give(bad: bool) -> Any:
        await ready.wait()  # so that all outcomes are ready at once
        return REFUSED[kind]() if bad else "fine"

    async with build(give) as engine:
        commits = Seen(engine, "commit")
        found = await _together(engine, ready, [give.bind(bad=i in (3, 11)) for i in range(20)])
        assert max(event.size for event in commits.all) > 1
    for place, one in enumerate(found):
        if place in (3, 11):
            assert one.status == "failed"
            assert "InvalidPayload" in one.error["type"] or "Postgres refused" in one.error["message"]
        else:
            assert (one.status, one.result) == ("done", "fine")


async def test_a_state_that_only_postgres_refuses_fails_its_instance_alone(build: Build, sql: Sql) -> None:
    """R8: the same for state (here the table has a constraint of the operator's own), with the state of before kept."""
    await sql("ALTER TABLE {s}.instances ADD CHECK ((state -> 'x') IS DISTINCT FROM '13')")
    ready = asyncio.Event()

    class Unlucky(Machine):
        n: int
        x: Any = None

        @step
        async def first(self, ctx: Context) -> Next:
            await ready.wait()
            self.x = self.n
            return Next(self.second)

        @step
        async def second(self, ctx: Context) -> Done:
            return Done(self.x)

    async with build(Unlucky) as engine:
        found = await _together(engine, ready, [Unlucky(n=n) for n in range(20)])
    assert [one.result for one in found if one.status == "done"] == [n for n in range(20) if n != 13]
    assert "Postgres refused" in found[13].error["message"]
    assert "step 'first'" in found[13].error["message"]
    assert (found[13].step, found[13].state) == ("first", {"n": 13, "x": None})
