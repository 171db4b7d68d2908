"""Signals: delivery, waking, packs, time-outs, consumption."""

from __future__ import annotations

import psycopg
import pytest
from engine_support import Build, Sql, ended, eventually

from gen_durable import Await, Context, Done, Handle, Machine, Next, Retry, Sleep, Stop, step
from gen_durable.errors import DuplicateInstance, InvalidArgument, InvalidPayload, NoSuchInstance


class Checkout(Machine):
    order: int
    paid: int = 0

    @step
    async def start(self, ctx: Context) -> Await:
        return Await("payment_confirmed", then=self.ship, timeout=3600)

    @step
    async def ship(self, ctx: Context) -> Done | Stop:
        if ctx.timed_out:
            return Stop("payment never came")
        self.paid = ctx.awaited[0].payload["amount"]
        return Done({"order": self.order, "paid": self.paid})


class Pack(Machine):
    """Collects three parts, then looks at what is left."""

    sizes: list[int] = []

    @step
    async def start(self, ctx: Context) -> Await:
        return Await("part", then=self.collect)

    @step
    async def collect(self, ctx: Context) -> Await | Next:
        self.sizes.append(len(ctx.awaited))
        if len(ctx.awaited) < 3:
            return Await("part", then=self.collect)
        return Next(self.finish)

    @step(run_ahead=False)
    async def finish(self, ctx: Context) -> Done:
        return Done([self.sizes, [signal.payload for signal in ctx.inbox], len(ctx.awaited)])


async def parked(handle: Handle, status: str = "awaiting_signal") -> None:
    async def look() -> bool:
        return (await handle.get()).status == status

    await eventually(look)


async def test_the_first_look_of_the_contract_runs_as_written(build: Build) -> None:
    """Section 2: the checkout."""
    async with build(Checkout) as engine:
        handle = await engine.insert(Checkout(order=42), key="order:42")
        assert await engine.signal("order:42", "payment_confirmed", {"amount": 100})
        assert await handle.result(timeout=10) == {"order": 42, "paid": 100}


async def test_a_parked_instance_is_woken_and_shows_what_it_waits_for(build: Build, sql: Sql) -> None:
    """R10, R12: only a matching name wakes; others stay in the inbox; the end empties it."""
    async with build(Checkout) as engine:
        handle = await engine.insert(Checkout(order=1))
        await parked(handle)
        found = await handle.get()
        assert (found.awaits, found.step, found.attempt) == (["payment_confirmed"], "ship", 0)
        assert found.due_at is not None
        await engine.signal(handle.id, "other")
        assert (await handle.get()).status == "awaiting_signal"
        await engine.signal(handle.id, "payment_confirmed", {"amount": 7})
        assert await handle.result(timeout=10) == {"order": 1, "paid": 7}
        assert await sql("SELECT count(*) FROM {s}.signals") == [(0,)]
        with pytest.raises(NoSuchInstance):
            await engine.signal(handle.id, "payment_confirmed")
        with pytest.raises(NoSuchInstance):
            await engine.signal("no such key", "payment_confirmed")
        assert await sql("SELECT count(*) FROM {s}.signals") == [(0,)]
        kinds = [transition.outcome for transition in await engine.history(handle.id)]
    assert kinds == ["await", "done"]


async def test_a_pack_accumulates_and_does_not_spin(build: Build, sql: Sql) -> None:
    """R13: a repeated ``Await`` removes nothing and sleeps until something comes that it was not handed."""
    async with build(Pack) as engine:
        handle = await engine.insert(Pack())
        await parked(handle)
        for number in range(3):
            await engine.signal(handle.id, "part", number)

            async def counted(n: int = number) -> bool:
                found = await handle.get()
                return len(found.state["sizes"]) > n

            await eventually(counted)
        sizes, left, awaited = await handle.result(timeout=10)
    assert (sizes, left, awaited) == ([1, 2, 3], [], 0)


async def test_progress_consumes_exactly_what_was_handed(build: Build) -> None:
    """R13: by identity; a signal that the step did not see stays for a later await."""

    class Two(Machine):
        seen: list[list[int]] = []

        @step
        async def start(self, ctx: Context) -> Await:
            return Await({"a", "b"}, then=self.got)

        @step
        async def got(self, ctx: Context) -> Sleep | Done:
            self.seen.append([signal.payload for signal in ctx.awaited])
            if len(self.seen) == 1:
                await ctx.client.signal(ctx.id, "a", 99)  # it comes while the step runs
                return Sleep(0.01, then=self.start)
            return Done(self.seen)

    async with build(Two) as engine:
        handle = await engine.insert(Two(), delay=60)
        await engine.signal(handle.id, "b", 1)
        await engine.signal(handle.id, "c", 2)
        await engine.signal(handle.id, "a", 3)
        direct = await engine.insert(Two())
        await engine.signal(direct.id, "b", 1)
        assert await direct.result(timeout=10) == [[1], [99]]


@pytest.mark.parametrize("via", ["await", "next", "sleep"])
async def test_what_was_handed_and_left_is_new_again_after_progress(build: Build, via: str) -> None:
    """R12, R13: an earlier await's signal wakes no further await, until a step goes on and leaves it."""

    class Turns(Machine):
        @step
        async def start(self, ctx: Context) -> Await:
            return Await("a", then=self.second)

        @step
        async def second(self, ctx: Context) -> Await:
            return Await("b", then=self.third)

        @step
        async def third(self, ctx: Context) -> Await | Next | Sleep:
            if via == "await":
                return self.again(ctx)
            return Next(self.again) if via == "next" else Sleep(0.01, then=self.again)

        @step
        def again(self, ctx: Context) -> Await:
            return Await(["a", "b"], then=self.last, timeout=0.1 if via == "await" else 60)

        @step
        async def last(self, ctx: Context) -> Done:
            return Done([ctx.timed_out, [s.name for s in ctx.awaited], [s.name for s in ctx.inbox]])

    async with build(Turns) as engine:
        handle = await engine.insert(Turns())
        await handle.signal("a")
        await handle.signal("b")
        left = ["a", "b"] if via == "await" else ["a"]
        assert await handle.result(timeout=10) == [via == "await", left, left]


async def test_retry_and_a_failed_run_remove_nothing(build: Build) -> None:
    """R13, R2: the same signals are handed again."""

    class Again(Machine):
        @step
        async def start(self, ctx: Context) -> Await:
            return Await("go", then=self.run_)

        @step
        async def run_(self, ctx: Context) -> Retry | Done:
            if ctx.attempt < 2:
                return Retry()
            return Done([signal.payload for signal in ctx.awaited])

    async with build(Again) as engine:
        handle = await engine.insert(Again())
        await engine.signal(handle.id, "go", 5)
        assert await handle.result(timeout=10) == [5]


async def test_a_timeout_wakes_without_an_attempt(build: Build) -> None:
    """R14: a wake, not a failure."""

    class Late(Machine):
        @step
        async def start(self, ctx: Context) -> Await:
            return Await("go", then=self.then_, timeout=0.05)

        @step
        async def then_(self, ctx: Context) -> Done:
            return Done([ctx.timed_out, ctx.attempt, len(ctx.awaited)])

    async with build(Late) as engine:
        handle = await engine.insert(Late())
        assert await handle.result(timeout=10) == [True, 0, 0]


async def test_the_same_dedup_key_is_one_signal_also_after_it_was_consumed(build: Build) -> None:
    """R11."""

    class Loop(Machine):
        got: list[int] = []

        @step
        async def start(self, ctx: Context) -> Await:
            return Await("go", then=self.take)

        @step
        async def take(self, ctx: Context) -> Next | Done:
            self.got += [signal.payload for signal in ctx.awaited]
            return Done(self.got) if len(self.got) > 1 else Next(self.start)

    async with build(Loop) as engine:
        handle = await engine.insert(Loop())
        assert await engine.signal(handle.id, "go", 1, dedup_key="one")
        assert not await engine.signal(handle.id, "go", 1, dedup_key="one")

        async def took() -> bool:
            found = await handle.get()
            return found.state["got"] == [1] and found.status == "awaiting_signal"

        await eventually(took)
        assert not await engine.signal(handle.id, "go", 1, dedup_key="one")
        assert (await handle.get()).status == "awaiting_signal"
        assert await engine.signal(handle.id, "go", 2, dedup_key="two")
        assert await handle.result(timeout=10) == [1, 2]


async def test_signal_or_insert_starts_one_and_delivers_to_it(build: Build) -> None:
    """Section 5: deliver to the live instance of the key, or start it with the signal in its inbox."""
    async with build(Checkout) as engine:
        first = await engine.signal_or_insert(
            Checkout(order=1), key="o", name="payment_confirmed", payload={"amount": 5}
        )
        assert await first.result(timeout=10) == {"order": 1, "paid": 5}
        waiting = await engine.insert(Checkout(order=2), key="o2")
        await parked(waiting)
        same = await engine.signal_or_insert(
            Checkout(order=3), key="o2", name="payment_confirmed", payload={"amount": 6}
        )
        assert same.id == waiting.id
        assert await waiting.result(timeout=10) == {"order": 2, "paid": 6}


async def test_signal_or_insert_where_the_key_is_reserved(build: Build, sql: Sql) -> None:
    """R16: it says who holds the key; also when the terminal row is pruned before the key's reservation."""
    async with build(Checkout) as engine:
        first = await engine.insert(Checkout(order=1), key="o", scope=["live", "done"])
        await engine.signal(first.id, "payment_confirmed", {"amount": 5})
        await first.result(timeout=10)
        for _ in range(2):
            with pytest.raises(DuplicateInstance) as caught:
                await engine.signal_or_insert(Checkout(order=2), key="o", name="payment_confirmed")
            assert caught.value.existing_id == first.id
            await sql("DELETE FROM {s}.finished")


async def test_who_has_an_idle_worker_of_its_own_wakes_no_other(build: Build, database_url: str, schema: str) -> None:
    """R19: the worker of the same process is woken in memory; others, when it does not take what a signal woke."""
    ear = await psycopg.AsyncConnection.connect(database_url, autocommit=True)
    never = 60.0  # nothing here is found by a poll
    async with (
        ear,
        build(Checkout, queues={"default": 5}, poll_interval=never) as engine,
        build(Checkout, queues={"far": 5}, poll_interval=never),
    ):
        here = [await engine.insert(Checkout(order=n)) for n in range(3)]
        there = await engine.insert(Checkout(order=9), queue="far")
        for handle in (*here, there):
            await parked(handle)
        await engine.signal(here[0].id, "payment_confirmed", {"amount": 1})
        await here[0].result(timeout=10)
        await ear.execute(f"LISTEN {schema}_wake".encode())
        await engine.signal(here[1].id, "payment_confirmed", {"amount": 1})
        assert await here[1].result(timeout=10) == {"order": 1, "paid": 1}
        await engine.signal(there.id, "payment_confirmed", {"amount": 1})
        assert await there.result(timeout=30) == {"order": 9, "paid": 1}
        heard = []
        async for notice in ear.notifies(timeout=10):
            heard.append(notice.payload)
            if notice.payload == "q:far":
                break
        assert "q:default" not in heard


async def test_a_bad_signal_is_refused(build: Build) -> None:
    """Section 14."""
    async with build(Checkout) as engine:
        handle = await engine.insert(Checkout(order=1), delay=60)
        with pytest.raises(InvalidArgument, match="name of a signal"):
            await engine.signal(handle.id, "")
        with pytest.raises(InvalidPayload):
            await engine.signal(handle.id, "go", float("nan"))
        with pytest.raises(InvalidArgument, match="dedup_key"):
            await engine.signal(handle.id, "go", dedup_key="")
    for bad in (lambda: Await([], then="x"), lambda: Await(7, then="x"), lambda: Await("a", then="x", timeout=-1)):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument):
            bad()


async def test_cancel_of_a_waiting_one(build: Build) -> None:
    """Section 12: ``cancel``."""
    async with build(Checkout) as engine:
        handle = await engine.insert(Checkout(order=1))
        await parked(handle)
        assert await engine.cancel(handle.id)
        found = await ended(handle)
        assert (found.status, found.error) == ("cancelled", {"type": "Cancelled", "message": "cancelled"})
        assert not await engine.cancel(handle.id)


async def test_a_retry_is_handed_the_same_signals_and_one_that_waited_waits_again(build: Build, sql: Sql) -> None:
    """Section 12: a failed or cancelled one again from its step."""
    broken = True

    class Taker(Machine):
        @step
        async def start(self, ctx: Context) -> Await:
            return Await("go", then=self.take, timeout=3600)

        @step
        async def take(self, ctx: Context) -> Done:
            if broken:
                raise RuntimeError("out of order")
            return Done([[signal.payload for signal in ctx.awaited], ctx.timed_out])

    async with build(Taker) as engine:
        handle = await engine.insert(Taker())
        await engine.signal(handle.id, "go", 1, dedup_key="one")
        assert (await ended(handle)).status == "failed"
        assert await sql("SELECT count(*) FROM {s}.signals") == [(0,)]
        broken = False
        await engine.retry(handle.id)
        assert await handle.result(timeout=10) == [[1], False]

        waiting = await engine.insert(Taker(), key="w")
        await parked(waiting)
        deadline = (await waiting.get()).due_at
        await engine.signal("w", "other", 0)
        await engine.cancel("w")
        await engine.retry("w")
        found = await waiting.get()
        assert (found.status, found.awaits, found.due_at) == ("awaiting_signal", ["go"], deadline)
        await engine.signal("w", "go", 2)
        assert await waiting.result(timeout=10) == [[2], False]
