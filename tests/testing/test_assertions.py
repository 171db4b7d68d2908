"""The assertions, and what they say when they fail; a context for steps without an engine."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from gen_durable import Await, Backoff, Context, Done, Engine, Machine, Next, Sleep, Stop, job, step, testing
from gen_durable.errors import InvalidArgument

Build = Callable[..., Engine]


class Order(Machine, name="Order"):
    number: int
    notes: str = ""

    @step
    async def pay(self, ctx: Context) -> Any:
        if self.number < 0:
            raise ValueError(f"order {self.number} has no price")
        return Next(self.ship) if self.number else Sleep(3600, self.ship)

    @step
    async def ship(self, ctx: Context) -> Done | Stop:
        return Done({"shipped": self.number}) if ctx.attempt == 0 else Stop("lost")


@job(retry=Backoff(max_attempts=3, initial=1, jitter=False))
async def shaky() -> None:
    raise OSError("unplugged")


async def test_they_answer_with_the_snapshot(durable_engine: Build) -> None:
    """Section 13: by id, by key, or by handle."""
    engine = durable_engine(machines=[Order, shaky])
    async with engine.client():
        handle = await engine.insert(Order(number=7), key="order:7")
        assert (await testing.assert_status(engine, handle, "runnable")).step == "pay"
        bad = await engine.insert(shaky.bind())
        await testing.drain(engine)
        for target in (handle, handle.id, "order:7"):
            found = await testing.assert_done(engine, target, result={"shipped": 7})
            assert found.id == handle.id
        assert (await testing.assert_done(engine, handle)).result == {"shipped": 7}
        assert (await testing.assert_failed(engine, bad, match="OSError: unplugged$")).attempt == 2
        assert (await testing.assert_failed(engine, bad)).id == bad.id


async def test_a_failed_one_shows_what_there_is(durable_engine: Build) -> None:
    """Section 13: helpful messages: status, step, attempt, state, error with its place, the end of the history."""
    engine = durable_engine(machines=[Order, shaky])
    async with engine.client():
        await engine.insert(Order(number=-3), key="order:-3")
        handle = await engine.insert(shaky.bind())
        await testing.drain(engine)
        with pytest.raises(AssertionError) as caught:
            await testing.assert_done(engine, "order:-3", result=None)
        said = str(caught.value)
        assert said.startswith("instance 1 (Order, key 'order:-3') is failed, not done\n")
        for part in (
            "step 'pay', attempt 0, crashes 0, queue 'default', priority 0",
            "state {'notes': '', 'number': -3}",
            "error ValueError: order -3 has no price",
            'raise ValueError(f"order {self.number} has no price")',
            "history (the last 1 of 1):",
            "'pay', attempt 0: failed",
        ):
            assert part in said, said
        with pytest.raises(AssertionError, match="failed, but its error does not match 'plugged in'") as caught:
            await testing.assert_failed(engine, handle, match="plugged in")
        assert "history (the last 3 of 3):" in str(caught.value)
        assert "attempt 1: retry, OSError: unplugged" in str(caught.value)


async def test_another_result_and_another_status_are_told(durable_engine: Build) -> None:
    engine = durable_engine(machines=[Order])
    async with engine.client():
        done = await engine.insert(Order(number=1, notes="x" * 2000))
        asleep = await engine.insert(Order(number=0))
        await testing.drain(engine, collapse=False)
        with pytest.raises(
            AssertionError, match=r"ended with the result \{'shipped': 1\}, not \{'shipped': 2\}"
        ) as error:
            await testing.assert_done(engine, done, result={"shipped": 2})
        assert len(str(error.value)) < 1500
        with pytest.raises(AssertionError, match=r"(?s)is runnable, not failed.*due at 20.*'pay', attempt 0: sleep"):
            await testing.assert_failed(engine, asleep)
        with pytest.raises(AssertionError, match="is runnable, not awaiting_signal"):
            await testing.assert_awaiting(engine, asleep, "paid")
        with pytest.raises(InvalidArgument, match="no status 'finished'; the statuses are runnable, executing"):
            await testing.assert_status(engine, done, "finished")


async def test_one_that_is_not_there_shows_the_newest_that_are(durable_engine: Build) -> None:
    engine = durable_engine(machines=[Order])
    async with engine.client():
        with pytest.raises(AssertionError, match="no instance with the id 5; there are none"):
            await testing.assert_done(engine, 5)
        await engine.insert(Order(number=7), key="order:7")
        with pytest.raises(
            AssertionError, match=r"with the key 'order:8'; the newest are\n  instance 1 \(Order, key 'o"
        ):
            await testing.assert_done(engine, "order:8")


class Approval(Machine, name="Approval"):
    @step
    async def ask(self, ctx: Context) -> Await:
        return Await(["yes", "no"], then=self.decide, timeout=3600)

    @step
    async def decide(self, ctx: Context) -> Done:
        return Done([signal.name for signal in ctx.awaited])


async def test_awaiting_compares_the_names(durable_engine: Build) -> None:
    """R12: what a parked instance awaits, in any order."""
    engine = durable_engine(machines=[Approval])
    async with engine.client():
        handle = await engine.insert(Approval())
        await testing.drain(engine)
        await testing.assert_awaiting(engine, handle)
        await testing.assert_awaiting(engine, handle, "yes", "no")
        said = "(?s)awaits 'no', 'yes', not 'yes'.*its timeout is at.*awaits 'no', 'yes'.*'ask', attempt 0: await"
        with pytest.raises(AssertionError, match=said):
            await testing.assert_awaiting(engine, handle, "yes")
        await engine.signal(handle.id, "no")
        await testing.drain(engine)
        await testing.assert_done(engine, handle, result=["no"])


async def test_steps_are_plain_methods_with_a_context_that_can_be_built() -> None:
    """Section 13: no engine, no database."""
    order = Order(number=7)
    assert await order.pay(testing.context()) == Next(order.ship)
    assert await order.ship(testing.context(attempt=1)) == Stop("lost")
    given = testing.context(id=5, key="order:7", due_at=datetime(2030, 1, 1, tzinfo=UTC))
    assert (given.id, given.key, given.due_at.year, given.queue, given.client) == (5, "order:7", 2030, "default", None)
    assert (given.awaited, given.children, given.timed_out) == ([], [], False)
    for name in Context.__slots__:
        assert hasattr(given, name)
    with pytest.raises(InvalidArgument, match=r"no attribute 'atempt'; it has .*attempt"):
        testing.context(atempt=1)
