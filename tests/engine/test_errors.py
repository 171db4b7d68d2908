"""What follows an exception in a step: ``on_error``, the policy, timeouts, and what is kept of it."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import threading
from typing import Any

import pytest
from engine_support import Build, Seen, Sql, ended, failure

from gen_durable import Backoff, Cancel, Context, Done, Machine, Next, Retry, RetryAfter, Sleep, Stop, job, step
from gen_durable.errors import InstanceCancelled, InstanceFailed

NOW = Backoff(max_attempts=3, initial=0, jitter=False)


class Trouble(Exception):
    """What the steps here raise."""


# on_error -------------------------------------------------------------------------------------------


class Handled(Machine, abstract=True):
    how: str
    n: int = 0
    log: list[str] = []

    @step
    async def work(self, ctx: Context) -> Done:
        if self.log:
            return Done(["again", self.n, ctx.attempt])
        self.n = 99  # the failed run's, so it must not count
        raise Trouble("first")

    @step
    async def rescue(self, ctx: Context) -> Done:
        return Done(["rescued", self.n, ctx.attempt])

    def decide(self, error: Any, ctx: Context) -> Any:
        self.log.append(f"{type(error).__name__} at {ctx.step} {ctx.attempt} n={self.n}")
        self.n += 1
        match self.how:
            case "next":
                return Next(self.rescue)
            case "retry":
                return Retry(0.05)
            case "sleep":
                return Sleep(0.05, self.rescue)
            case "done":
                return Done("good enough")
            case "stop":
                return Stop("gave up")
            case "same":
                raise error
            case "other":
                raise ValueError("the handler's own")
            case "cancel":
                raise Cancel("not wanted any more")
            case "exit":
                raise SystemExit(3)
            case "cancelled":
                raise asyncio.CancelledError
            case "stop iteration":
                return next(iter([]))
            case _:
                return "nonsense"


class HandledAsync(Handled):
    async def on_error(self, error: Any, ctx: Context) -> Any:
        await asyncio.wait({asyncio.ensure_future(asyncio.Event().wait())}, timeout=0.001)
        return self.decide(error, ctx)


class HandledSync(Handled):
    def on_error(self, error: Any, ctx: Context) -> Any:
        return self.decide(error, ctx)


SEEN = ["Trouble at work 0 n=0"]
ENDS: dict[str, tuple[str, Any, list[str], dict[str, Any]]] = {
    "next": ("done", ["rescued", 1, 0], ["next", "done"], {"n": 1, "log": SEEN}),
    "retry": ("done", ["again", 1, 1], ["retry", "done"], {"n": 1, "log": SEEN}),
    "sleep": ("done", ["rescued", 1, 0], ["sleep", "done"], {"n": 1, "log": SEEN}),
    "done": ("done", "good enough", ["done"], {"n": 1, "log": SEEN}),
    "stop": ("failed", "Stop: gave up", ["failed"], {"n": 1, "log": SEEN}),
    "same": ("failed", "test_errors.Trouble: first", ["failed"], {"n": 0, "log": []}),
    "other": ("failed", "ValueError: the handler's own", ["failed"], {"n": 0, "log": []}),
    "cancel": ("cancelled", "gen_durable.outcome.Cancel: not wanted any more", ["cancelled"], {"n": 0, "log": []}),
    "exit": ("failed", "SystemExit: 3", ["failed"], {"n": 0, "log": []}),
    "cancelled": ("failed", "asyncio.exceptions.CancelledError: ", ["failed"], {"n": 0, "log": []}),
    "stop iteration": ("failed", "RuntimeError: ", ["failed"], {"n": 0, "log": []}),
    "nonsense": ("failed", "gen_durable.errors.InvalidOutcome: ", ["failed"], {"n": 0, "log": []}),
}


@pytest.mark.parametrize("machine", [HandledAsync, HandledSync])
@pytest.mark.parametrize("run_ahead", [True, False])
async def test_on_error_decides_with_the_state_from_before(build: Build, machine: Any, run_ahead: bool) -> None:
    """Section 3, errors: ``on_error`` may return each outcome, raise the error again or another; no handler loops."""
    async with build(machine, run_ahead=run_ahead) as engine:
        handles = {how: await engine.insert(machine(how=how)) for how in ENDS}
        for how, (status, end, outcomes, state) in ENDS.items():
            found = await ended(handles[how])
            history = await engine.history(found.id)
            assert (found.status, [t.outcome for t in history]) == (status, outcomes), how
            assert found.state == {"how": how, **state}, how
            if status == "done":
                assert (found.result, found.error) == (end, None), how
                assert history[0].error is not None, how
                assert history[0].error["message"] == "first", how
            else:
                assert found.error is not None
                assert f"{found.error['type']}: {found.error['message']}".startswith(end), how
                assert "traceback" in found.error, how
        stopped = await handles["stop"].get()
        assert stopped.error is not None
        assert "Trouble: first" in stopped.error["traceback"]


async def test_on_error_raising_the_same_error_follows_the_policy(build: Build) -> None:
    """Section 3, errors: the default, and a handler that raises the error again, follow the step's policy."""
    asked: list[int] = []

    class Again(Machine, retry=NOW):
        @step
        async def work(self, ctx: Context) -> Done:
            if ctx.attempt < 2:
                raise Trouble(str(ctx.attempt))
            return Done(ctx.attempt)

        async def on_error(self, error: Any, ctx: Context) -> Any:
            asked.append(ctx.attempt)
            raise error

    async with build(Again) as engine:
        handle = await engine.insert(Again())
        assert await handle.result(timeout=10) == 2
        history = await engine.history(handle.id)
    assert asked == [0, 1]
    assert [(t.outcome, t.error and t.error["message"]) for t in history] == [
        ("retry", "0"), ("retry", "1"), ("done", None),
    ]  # fmt: skip


# Policies -------------------------------------------------------------------------------------------


async def test_without_a_policy_an_error_fails_a_machine(build: Build) -> None:
    """Section 3, errors: no policy means ``Stop``: failed after the first run, with the state from before."""

    class Plain(Machine):
        n: int = 0

        @step
        async def work(self, ctx: Context) -> Done:
            self.n = 5
            raise Trouble("once")

    async with build(Plain) as engine:
        handle = await engine.insert(Plain())
        with pytest.raises(InstanceFailed, match=r"test_errors\.Trouble: once"):
            await handle.result(timeout=10)
        found = await handle.get()
    assert (found.state, found.attempt, found.step) == ({"n": 0}, 0, "work")


async def test_a_policy_of_a_step_comes_before_that_of_its_machine(build: Build) -> None:
    """Section 3, errors: options on the machine are its steps' defaults; ``max_attempts`` counts all runs."""

    class Both(Machine, retry=Backoff(max_attempts=2, initial=0)):
        start: str

        @step
        async def go(self, ctx: Context) -> Next:
            return Next(self.start)

        @step
        async def own(self, ctx: Context) -> Done:
            raise Trouble(str(ctx.attempt))

        @step(retry=Backoff(max_attempts=4, initial=0))
        async def mine(self, ctx: Context) -> Done:
            raise Trouble(str(ctx.attempt))

    async with build(Both) as engine:
        two, four = await engine.insert(Both(start="own")), await engine.insert(Both(start="mine"))
        assert (await failure(two))["message"] == "1"
        assert (await failure(four))["message"] == "3"
        history = await engine.history(four.id)
    assert [t.outcome for t in history] == ["next", "retry", "retry", "retry", "failed"]
    assert [t.error["message"] for t in history[1:] if t.error] == ["0", "1", "2", "3"]


async def test_the_delays_of_a_policy_grow(build: Build) -> None:
    """Section 3, errors: a ``Backoff`` waits ``initial * factor ** attempt`` between the runs, at most ``maximum``."""

    class Slow(Machine, retry=Backoff(max_attempts=4, initial=0.1, factor=3, maximum=0.2, jitter=False)):
        @step
        async def work(self, ctx: Context) -> Done:
            raise Trouble

    async with build(Slow) as engine:
        handle = await engine.insert(Slow())
        await failure(handle)
        at = [t.at for t in await engine.history(handle.id)]
    gaps = [(b - a).total_seconds() for a, b in zip(at, at[1:], strict=False)]  # noqa: RUF007
    for gap, least in zip(gaps, (0.1, 0.2, 0.2), strict=True):
        assert least <= gap < least + 0.5, gaps


async def test_retry_on_and_stop_on_choose_by_class(build: Build) -> None:
    """Section 3, errors: only ``retry_on`` is retried, and ``stop_on`` never."""

    @job(retry=Backoff(max_attempts=3, initial=0, retry_on=(OSError, KeyError), stop_on=(PermissionError,)))
    async def picky(which: str) -> int:
        raise {"os": OSError, "key": KeyError, "denied": PermissionError, "value": ValueError}[which]("x")

    async with build(picky) as engine:
        counts = {}
        for which in ("os", "key", "denied", "value"):
            handle = await engine.insert(picky.bind(which=which))
            await failure(handle)
            counts[which] = len(await engine.history(handle.id))
    assert counts == {"os": 3, "key": 3, "denied": 1, "value": 1}


async def test_retry_after_waits_as_long_as_it_says_and_counts(build: Build) -> None:
    """Section 4: ``raise RetryAfter(s)`` retries after ``s`` instead of the policy's delay, within ``max_attempts``."""

    @job(max_attempts=3, retry=Backoff(initial=100, maximum=100))
    async def limited() -> None:
        raise RetryAfter(0.15)

    class Polite(Machine):
        n: int = 0

        @step
        def ask(self, ctx: Context) -> Done:
            self.n += 1
            if ctx.attempt < 1:
                raise RetryAfter(0.01)
            return Done(self.n)

        async def on_error(self, error: Any, ctx: Context) -> Stop:
            return Stop("must not be asked")

    async with build(limited, Polite) as engine:
        one, two = await engine.insert(limited.bind()), await engine.insert(Polite())
        assert (await failure(one))["type"] == "gen_durable.outcome.RetryAfter"
        at = [t.at for t in await engine.history(one.id)]
        assert len(at) == 3
        assert all(0.15 <= (b - a).total_seconds() < 0.65 for a, b in zip(at, at[1:], strict=False))  # noqa: RUF007
        assert await two.result(timeout=10) == 1


async def test_cancel_ends_an_instance_without_retry(build: Build) -> None:
    """Section 4: ``raise Cancel("reason")`` ends it as cancelled; no policy and no handler is asked."""

    @job
    async def unwanted() -> None:
        raise Cancel("the user has left")

    class Unwanted(Machine, retry=NOW):
        @step
        def only(self, ctx: Context) -> Done:
            raise Cancel

        async def on_error(self, error: Any, ctx: Context) -> Stop:
            return Stop("must not be asked")

    async with build(unwanted, Unwanted) as engine:
        one, two = await engine.insert(unwanted.bind()), await engine.insert(Unwanted())
        with pytest.raises(InstanceCancelled, match="the user has left") as caught:
            await one.result(timeout=10)
        assert caught.value.instance_id == one.id
        with pytest.raises(InstanceCancelled, match="cancelled by its step"):
            await two.result(timeout=10)
        assert (await one.get()).status == "cancelled"
        assert [t.outcome for t in await engine.history(two.id)] == ["cancelled"]


# Timeouts -------------------------------------------------------------------------------------------


async def test_a_step_that_outlives_its_timeout_is_cancelled_and_retried(build: Build) -> None:
    """Section 3, errors: a longer run is cancelled and handled as a ``TimeoutError``; the instance goes on."""
    cleaned: list[str] = []

    class Slow(Machine, timeout=0.1, retry=NOW):
        @step
        async def work(self, ctx: Context) -> Done:
            if ctx.attempt < 2:
                try:
                    await asyncio.Event().wait()
                finally:
                    cleaned.append(f"cancelled {ctx.attempt}")
            return Done("in time")

    async with build(Slow) as engine:
        handle = await engine.insert(Slow())
        assert await handle.result(timeout=10) == "in time"
        history = await engine.history(handle.id)
    assert cleaned == ["cancelled 0", "cancelled 1"]
    assert [t.error["type"] for t in history if t.error] == ["TimeoutError"] * 2
    assert history[0].error is not None
    assert "'work' ran longer than its timeout of 0.1 s" in history[0].error["message"]
    assert "in work" in history[0].error["traceback"]


async def test_an_outcome_after_the_timeout_is_dropped(build: Build) -> None:
    """Section 3, errors: a step that catches the cancel and goes on has still outlived its timeout."""

    @job(timeout=0.05, max_attempts=1)
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "too late"

    async with build(stubborn) as engine:
        assert (await failure(await engine.insert(stubborn.bind())))["type"] == "TimeoutError"


async def test_a_timeout_of_its_own_is_an_error_like_any_other(build: Build) -> None:
    """Section 3, errors: a ``TimeoutError`` that the step raises itself keeps its own message."""

    @job(timeout=30, max_attempts=1)
    async def mine() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    async with build(mine) as engine:
        error = await failure(await engine.insert(mine.bind()))
    assert error["type"] == "TimeoutError"
    assert "ran longer" not in error["message"]


async def test_the_late_outcome_of_a_thread_is_dropped(build: Build) -> None:
    """Section 3, errors; R4: a thread can't be killed; what it returns after its timeout changes nothing."""
    go = threading.Event()
    left = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Threaded(Machine, timeout=0.1, retry=NOW):
        n: int = 0

        @step
        def work(self, ctx: Context) -> Done:
            self.n = ctx.attempt + 1
            if ctx.attempt == 0:
                go.wait(20)
                loop.call_soon_threadsafe(left.set)
                return Done("too late")
            return Done(self.n)

    async with build(Threaded, threads=2) as engine:
        handle = await engine.insert(Threaded())
        assert await handle.result(timeout=10) == 2
        go.set()
        await asyncio.wait_for(left.wait(), 10)
        found, history = await handle.get(), await engine.history(handle.id)
    assert (found.result, found.state) == (2, {"n": 2})
    assert [t.outcome for t in history] == ["retry", "done"]
    assert history[0].error is not None
    assert history[0].error["type"] == "TimeoutError"


# What a step may raise ------------------------------------------------------------------------------


class Odd(Exception):
    """Nobody can print it."""

    def __str__(self) -> str:
        raise RuntimeError("no message")


async def _cancel_myself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()


def _cancel_later() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def _await_cancelled() -> None:
    other = asyncio.ensure_future(asyncio.Event().wait())
    other.cancel()
    await other


async def _group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_fail())
        await asyncio.Event().wait()


async def _fail() -> None:
    raise Trouble("inside the group")


RAISED: dict[str, str] = {
    "CancelledError": "asyncio.exceptions.CancelledError",
    "cancelled other": "asyncio.exceptions.CancelledError",
    "cancelled itself": "asyncio.exceptions.CancelledError",
    "SystemExit": "SystemExit",
    "StopIteration": "RuntimeError",
    "StopAsyncIteration": "StopAsyncIteration",
    "group": "ExceptionGroup",
    "odd": "test_errors.Odd",
    "recursion": "RecursionError",
}


async def raise_it(how: str) -> str:
    match how:
        case "CancelledError":
            raise asyncio.CancelledError
        case "cancelled other":
            await _await_cancelled()
        case "cancelled itself":
            await _cancel_myself()
        case "SystemExit":
            raise SystemExit(2)
        case "StopIteration":
            next(iter([]))
        case "StopAsyncIteration":
            raise StopAsyncIteration
        case "group":
            await _group()
        case "odd":
            raise Odd
        case "recursion":
            await raise_it(how)
    return "nothing was raised"


@job(max_attempts=2, retry=Backoff(initial=0))
async def raising(how: str) -> str:
    return await raise_it(how)


@job(max_attempts=2, retry=Backoff(initial=0))
def raising_in_thread(how: str) -> str:
    if how == "StopIteration":
        next(iter([]))  # not through a coroutine, which would make another error of it
    coroutine = raise_it(how)
    try:
        coroutine.send(None)
    finally:
        coroutine.close()
    return "nothing was raised"


async def test_whatever_a_step_raises_is_its_own_error(build: Build) -> None:
    """Section 3, errors: also ``CancelledError``, ``SystemExit``, ``StopIteration``: an error of this step alone.

    With one slot in the queue: none of them may take it, or strand a row.
    """
    async with build(raising, queues={"default": 1}, lease=2, heartbeat=0.5) as engine:
        stale = Seen(engine, "stale", "worker_dead")
        handles = {how: await engine.insert(raising.bind(how=how)) for how in RAISED}
        for how, kind in RAISED.items():
            error = await failure(handles[how])
            assert error["type"] == kind, how
            retried = issubclass(getattr(builtins, kind, Exception), Exception) and "Cancelled" not in kind
            outcomes = [t.outcome for t in await engine.history(handles[how].id)]
            assert outcomes == (["retry", "failed"] if retried else ["failed"]), how
            assert (await handles[how].get()).crashes == 0
        assert stale.all == []
        assert len(await engine.workers()) == 1


async def test_whatever_a_step_in_a_thread_raises_is_its_own_error(build: Build) -> None:
    """The same for plain functions: ``next()`` on an empty iterator must not leave the instance hanging."""
    kinds = [how for how in RAISED if how not in ("cancelled other", "cancelled itself", "group")]
    async with build(raising_in_thread, threads=1) as engine:
        handles = {how: await engine.insert(raising_in_thread.bind(how=how)) for how in kinds}
        for how in kinds:
            assert (await failure(handles[how]))["type"] == RAISED[how], how


async def test_a_step_that_cancels_its_own_task_and_returns_counts(build: Build) -> None:
    """R25: whatever a step does to the task that runs it, no row is stranded and the worker goes on."""

    @job
    async def rude(n: int) -> int:
        _cancel_later()
        return n

    async with build(rude, queues={"default": 2}) as engine:
        handles = [await engine.insert(rude.bind(n=n)) for n in range(10)]
        assert [await handle.result(timeout=10) for handle in handles] == list(range(10))


# What is kept ---------------------------------------------------------------------------------------


async def test_the_stored_error_has_type_message_and_traceback_cut_to_a_sane_length(build: Build) -> None:
    """Section 3, errors: a huge message or a deep stack is cut; text that Postgres can't hold is made storable."""

    def deeper(n: int) -> None:
        if n:
            deeper(n - 1)
        raise Trouble("bad \0 text \ud800 " + "x" * 100_000)

    class Kept(Machine, retry=Backoff(max_attempts=2, initial=0)):
        @step
        async def work(self, ctx: Context) -> Done:
            deeper(300)
            return Done()

    class Stopped(Machine):
        @step
        async def work(self, ctx: Context) -> Stop:
            return Stop("no \0 \ud800 " + "y" * 100_000)

    async with build(Kept, Stopped) as engine:
        handle, other = await engine.insert(Kept()), await engine.insert(Stopped())
        error = await failure(handle)
        first = (await engine.history(handle.id))[0].error
        reason = await failure(other)
    assert error["type"] == "test_errors.Trouble"
    assert error["message"].startswith("bad ")
    assert "\0" not in error["message"]
    assert 100 < len(error["message"]) <= 2100
    assert "in deeper" in error["traceback"]
    assert 500 < len(error["traceback"]) <= 10_000
    assert first is not None
    assert (first["type"], first["message"]) == (error["type"], error["message"])
    assert reason["type"] == "Stop"
    assert 100 < len(reason["message"]) <= 2100


async def test_the_last_error_shows_while_the_instance_waits_for_its_retry(build: Build, sql: Sql) -> None:
    """Section 12: a snapshot of what waits for its next attempt shows the last error and the attempts made."""

    @job(retry=Backoff(initial=100, jitter=False))
    async def flaky() -> None:
        raise Trouble("come back later")

    async with build(flaky) as engine:
        commits = Seen(engine, "commit")
        handle = await engine.insert(flaky.bind())
        await commits.until(lambda seen: seen)
        found = await handle.get()
    assert (found.status, found.attempt, found.worker) == ("runnable", 1, None)
    assert found.error is not None
    assert found.error["message"] == "come back later"
    assert found.due_at is not None
    assert 99 < (found.due_at - found.updated_at).total_seconds() < 101
