"""R9: what a worker doesn't know it leaves alone; what it can't load any more fails clearly."""

from __future__ import annotations

from typing import Any

import pytest
from engine_support import Build, Seen, Sql, failure, moment

from gen_durable import Context, Done, Machine, Next, Sleep, job, step
from gen_durable.errors import DefinitionError


@job
async def known(n: int) -> int:
    return n


class Rolling(Machine, name="rolling"):
    n: int = 0

    @step
    async def only(self, ctx: Context) -> Done:
        return Done(["one", self.n, ctx.attempt])


class RollingTwo(Machine, name="rolling", version=2):
    n: int = 0
    extra: str = "new"

    @step
    async def only(self, ctx: Context) -> Done:
        return Done(["two", self.n, self.extra])


async def test_rows_of_an_unknown_machine_or_version_wait_untouched(build: Build) -> None:
    """R9: a rolling deploy is safe: an old worker leaves them, spending no attempt; one that knows them runs them."""
    async with build(known, Rolling, RollingTwo, queues={}) as web, build(known, Rolling) as old:
        claims = Seen(old, "claim")
        one, two = await web.insert(Rolling(n=1)), await web.insert(RollingTwo(n=2), priority=-10)
        assert await one.result(timeout=10) == ["one", 1, 0]
        # The old worker went on claiming past it, and had no trouble with what is behind it.
        for n in range(20):
            assert await (await web.insert(known.bind(n=n))).result(timeout=10) == n
        found = await two.get()
        assert (found.status, found.attempt, found.rev, found.worker) == ("runnable", 0, 0, None)
        assert await web.history(two.id) == []
        assert sum(event.got for event in claims.all) == 21
        async with build(RollingTwo):
            assert await two.result(timeout=10) == ["two", 2, "new"]
        assert (await two.get()).attempt == 0


async def test_a_worker_that_knows_nothing_of_a_queue_waits(build: Build, sql: Sql) -> None:
    """R9: an engine without machines runs nothing and breaks nothing."""
    async with build(Rolling, queues={}) as web, build():
        handle = await web.insert(Rolling())
        await moment(0.2)
        assert (await handle.get()).status == "runnable"
        async with build(Rolling):
            assert await handle.result(timeout=10) == ["one", 0, 0]


async def test_a_machine_in_a_queue_that_its_worker_learns_of_later(build: Build) -> None:
    """R9, R19: a lane that did not exist when the worker started is learned of at once."""
    async with build(Rolling, queues={"default": 1, "late": 1}, poll_interval=60, lease=120, heartbeat=60) as worker:
        assert await (await worker.insert(Rolling(n=1), queue="late")).result(timeout=5) == ["one", 1, 0]
        async with build(Rolling, queues={"late": 1}).client() as web:
            assert await (await web.insert(Rolling(n=2), queue="late")).result(timeout=5) == ["one", 2, 0]


STORED = ['{"n": "seven"}', '{"n": null}', "[]", '"text"', '{"n": 1.5}']


async def test_state_that_no_longer_decodes_fails_with_the_decode_error(build: Build, sql: Sql) -> None:
    """R9: the row is not lost: ``failed`` with the decode error, its state as it was; ``on_error`` is not asked."""

    class Strict(Machine):
        n: int

        @step
        async def nap(self, ctx: Context) -> Sleep:
            return Sleep(1000, self.end)

        @step
        async def end(self, ctx: Context) -> Done:
            return Done()

        async def on_error(self, error: Any, ctx: Context) -> Done:
            return Done("must not be asked")

    async with build(Strict, queues={}) as web:
        handles = {stored: await web.insert(Strict(n=1)) for stored in STORED}
        for stored, handle in handles.items():
            await sql("UPDATE {s}.instances SET state = %s::jsonb WHERE id = %s", stored, handle.id)
        async with build(Strict, known) as worker:
            for stored, handle in handles.items():
                error = await failure(handle)
                assert error["type"] == "gen_durable.errors.StateDecodeError"
                assert "the stored state does not fit its fields" in error["message"]
                found = await handle.get()
                assert (found.step, found.attempt) == ("nap", 0)
                same = await sql("SELECT state = %s::jsonb FROM {s}.finished WHERE id = %s", stored, handle.id)
                assert same == [(True,)]
                assert [t.outcome for t in await web.history(handle.id)] == ["failed"]
            assert await (await worker.insert(known.bind(n=1))).result(timeout=10) == 1


async def test_a_new_field_with_a_default_and_an_old_one_that_is_gone_decode(build: Build, sql: Sql) -> None:
    """Section 3: a missing field gets its default, an unknown one is dropped: an additive change needs no version."""
    async with build(RollingTwo, queues={}) as web:
        handle = await web.insert(RollingTwo(n=3))
        await sql("""UPDATE {s}.instances SET state = '{"n": 4, "removed": true}'::jsonb""")
        async with build(RollingTwo):
            assert await handle.result(timeout=10) == ["two", 4, "new"]
        assert (await handle.get()).state == {"n": 4, "extra": "new"}


async def test_a_step_that_is_gone_fails_with_a_clear_error(build: Build, sql: Sql) -> None:
    """R9: a row at a step that its machine has no more goes to ``failed``, naming the step and those there are."""

    class Renamed(Machine):
        @step
        async def fresh(self, ctx: Context) -> Next:
            return Next(self.end)

        @step
        async def end(self, ctx: Context) -> Done:
            return Done()

    async with build(Renamed, queues={}) as web:
        handle = await web.insert(Renamed())
        await sql("UPDATE {s}.instances SET step = 'stale'")
        async with build(Renamed):
            error = await failure(handle)
    assert "has no step 'stale'" in error["message"]
    assert "fresh, end" in error["message"]
    assert "new version" in error["message"]


def test_classes_that_can_not_work_are_refused_when_they_are_defined() -> None:
    """R7 reaches the user at the definition, before any engine."""
    with pytest.raises(DefinitionError, match="there is no step"):

        class Empty(Machine):
            n: int = 0
