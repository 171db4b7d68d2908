"""Jobs: functions and classes, the context, attempts, and calling them plainly."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from engine_support import Build, Seen, failure

from gen_durable import Backoff, Context, Engine, Job, Machine, job
from gen_durable.errors import InvalidArgument, InvalidState


@dataclass
class Address:
    street: str
    numbers: list[int] = field(default_factory=list)


@job
async def add(a: int, b: int = 2, *, times: int = 1) -> int:
    return (a + b) * times


@job
def where() -> str:
    return threading.current_thread().name


@job(queue="post", priority=5, max_attempts=2, timeout=timedelta(seconds=9), name="mail.send", version=3)
async def send(ctx: Context, to: Address, note: str | None = None) -> dict[str, Any]:
    return {
        "to": to.street,
        "type": type(to).__name__,
        "numbers": to.numbers,
        "note": note,
        "ctx": [ctx.id, ctx.key, ctx.machine, ctx.version, ctx.queue, ctx.step, ctx.attempt, ctx.crashes, ctx.priority],
    }


class Resize(Job, queue="images", max_attempts=3):
    path: str
    width: int = 800
    tags: list[str] = field(default_factory=list)

    async def run(self, ctx: Context) -> dict[str, Any]:
        return {"path": self.path, "width": self.width, "tags": self.tags, "attempt": ctx.attempt}


class Blocking(Job):
    def run(self, ctx: Context) -> str:
        return threading.current_thread().name


async def test_functions_and_classes_run_and_their_return_value_is_the_result(build: Build) -> None:
    """Section 4: async and plain functions, ``Job`` classes, typed arguments with defaults."""
    queues = {"default": 5, "post": 5, "images": 5}
    async with build(add, where, send, Resize, Blocking, queues=queues) as engine:
        assert await (await engine.insert(add.bind(1))).result(timeout=10) == 3
        assert await (await engine.insert(add.bind(1, 4, times=3))).result(timeout=10) == 15
        assert "gen_durable step" in await (await engine.insert(where.bind())).result(timeout=10)
        assert "gen_durable step" in await (await engine.insert(Blocking())).result(timeout=10)
        one = await engine.insert(Resize(path="/a.png"))
        two = await engine.insert(Resize(path="/b.png", width=10, tags=["x"]))
        assert await one.result(timeout=10) == {"path": "/a.png", "width": 800, "tags": [], "attempt": 0}
        assert await two.result(timeout=10) == {"path": "/b.png", "width": 10, "tags": ["x"], "attempt": 0}


async def test_the_context_is_passed_by_its_annotation_and_tells_what_runs(build: Build) -> None:
    """Section 4: ``ctx`` goes to the parameter annotated ``Context``, which is not an argument to store."""
    async with build(send, queues={"post": 1}) as engine:
        handle = await engine.insert(send.bind(Address("Elm", [1, 2])), key="letter:1", priority=-3)
        result = await handle.result(timeout=10)
        found = await handle.get()
    assert result["ctx"] == [handle.id, "letter:1", "mail.send", 3, "post", "run", 0, 0, -3]
    assert (result["to"], result["type"], result["numbers"], result["note"]) == ("Elm", "Address", [1, 2], None)
    assert found.state == {"to": {"street": "Elm", "numbers": [1, 2]}, "note": None}
    assert (found.machine, found.version, found.queue, found.step) == ("mail.send", 3, "post", "run")


async def test_the_context_gives_the_client_the_worker_and_the_times(build: Build) -> None:
    """Section 4: through ``ctx.client`` a step inserts and reads others; its other facts are those of the row."""
    told: dict[str, Any] = {}

    @job
    async def child(n: int) -> int:
        return n * n

    @job
    async def parent(ctx: Context) -> int:
        told.update(worker=ctx.worker, due=ctx.due_at, inserted=ctx.inserted_at, text=repr(ctx))
        handle = await ctx.client.insert(child.bind(n=7))
        return int(await handle.result(timeout=10))

    async with build(child, parent) as engine:
        handle = await engine.insert(parent.bind())
        assert await handle.result(timeout=10) == 49
        found = await handle.get()
        (worker,) = await engine.workers()
    assert told["worker"] == worker.id == found.worker
    assert told["inserted"] == found.inserted_at == told["due"]
    assert told["due"].utcoffset() == timedelta(0)
    assert str(handle.id) in told["text"]


async def test_a_job_is_tried_20_times_with_backoff_and_then_fails(build: Build) -> None:
    """Section 4: 20 attempts by default, 1 s doubling to 300 s with jitter."""
    policy = add.__durable__.steps["run"].retry
    assert policy == Backoff(max_attempts=20, initial=1.0, factor=2.0, maximum=300.0, jitter=True)
    assert Resize.__durable__.steps["run"].retry == Backoff(max_attempts=3)

    @job(retry=Backoff(initial=0))
    async def hopeless(ctx: Context) -> None:
        raise OSError(f"attempt {ctx.attempt}")

    @job(max_attempts=2, retry=Backoff(initial=0, max_attempts=9))
    def twice(ctx: Context) -> None:
        raise OSError(f"attempt {ctx.attempt}")

    async with build(hopeless, twice) as engine:
        long, short = await engine.insert(hopeless.bind()), await engine.insert(twice.bind())
        assert (await failure(long))["message"] == "attempt 19"
        assert (await failure(short))["message"] == "attempt 1"
        history = await engine.history(long.id)
    assert [t.outcome for t in history] == ["retry"] * 19 + ["failed"]
    assert [t.error["message"] for t in history if t.error] == [f"attempt {n}" for n in range(20)]


async def test_the_default_backoff_waits_half_a_second_to_a_second_first(build: Build) -> None:
    """Section 4: the first retry of a job comes after 0.5 to 1 s (equal jitter)."""

    @job
    async def flaky() -> None:
        raise OSError

    async with build(flaky) as engine:
        steps = Seen(engine, "commit")
        handle = await engine.insert(flaky.bind())
        await steps.until(lambda seen: seen)
        found = await handle.get()
    assert found.due_at is not None
    assert 0.5 <= (found.due_at - found.updated_at).total_seconds() <= 1.0


async def test_calling_a_job_plainly_just_runs_it() -> None:
    """Section 4: no engine, no database: ``await send(...)`` is the function itself."""
    assert await add(1, b=1) == 2
    assert where() == threading.current_thread().name
    plain: Any = None  # no context is needed to try it
    assert Resize(path="x") == Resize(path="x", width=800)
    assert Blocking().run(plain) == threading.current_thread().name


async def test_each_run_gets_arguments_of_its_own(build: Build) -> None:
    """Section 3, R2: what a failed run did to its arguments is not there in the next."""

    @job(retry=Backoff(initial=0))
    async def greedy(ctx: Context, items: list[int]) -> list[int]:
        items.append(99)
        if ctx.attempt < 2:
            raise OSError
        return items

    async with build(greedy) as engine:
        assert await (await engine.insert(greedy.bind(items=[1]))).result(timeout=10) == [1, 99]


async def test_wrong_arguments_are_refused_by_bind_and_build() -> None:
    """Section 14: state with a wrong type, a missing or unknown argument: at once, with the name and the value."""
    with pytest.raises(InvalidState, match="missing a required argument: 'a'"):
        add.bind()  # type: ignore[call-arg]
    with pytest.raises(InvalidState, match="unexpected keyword argument 'c'"):
        add.bind(1, c=2)  # type: ignore[call-arg]
    with pytest.raises(InvalidState, match="field 'a' is 'one'"):
        add.bind("one")  # type: ignore[arg-type]
    with pytest.raises(InvalidState, match="there is no field 'size'"):
        Resize(path="x", size=3)  # type: ignore[call-arg]
    with pytest.raises(InvalidState, match="field 'path' is missing"):
        Resize()  # type: ignore[call-arg]


async def test_what_is_not_a_job_is_refused_by_insert(build: Build) -> None:
    """Section 14: inserting a class, a function, or anything else says what to give instead."""

    @job
    async def stranger() -> None: ...

    async with build(add, Resize) as engine:
        for wrong, message in (
            (Resize, "itself can't be inserted"),
            (add, r"add\.bind\(\.\.\.\)"),
            (5, "neither a machine nor a job"),
            (None, "neither a machine nor a job"),
            (Machine, "abstract"),
            (stranger.bind(), "is not registered with the engine"),
        ):
            with pytest.raises(InvalidArgument, match=message):
                await engine.insert(wrong)  # type: ignore[arg-type]
        assert (await engine.list()).items == []


async def test_sync_jobs_run_beside_each_other_up_to_the_number_of_threads(build: Build) -> None:
    """Section 3: ``def`` steps run in threads, as many at once as ``threads`` allows."""
    barrier = threading.Barrier(4, timeout=10)

    @job
    def meet() -> int:
        return barrier.wait()

    async with build(meet, threads=4, queues={"default": 10}) as engine:
        inserted = await engine.insert_many(meet.bind() for _ in range(8))
        results = await asyncio.gather(*(one.handle.result(timeout=15) for one in inserted))
    assert sorted(results) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_engines_take_jobs_and_machines_alike(build: Build) -> None:
    """Section 2: ``machines=`` takes functions and classes."""
    engine: Engine = build(add, Resize)
    assert [spec.name for spec in engine.settings.machines] == ["add", "Resize"]
