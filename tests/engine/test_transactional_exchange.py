"""What a step may leave on its connection, and the exchange that commits then."""

from __future__ import annotations

import pytest
from engine_support import Build, Sql, ended
from transactional_support import Notes, idle_backends

from gen_durable import Context, job

pytestmark = pytest.mark.usefixtures("notes")


@pytest.mark.parametrize("synced", [True, False])
async def test_a_pipeline_that_the_step_has_left_open(build: Build, notes: Notes, sql: Sql, synced: bool) -> None:
    """R3, R5: the answers to what the step had sent are not those to the engine's statements."""

    @job(transactional=True, max_attempts=1)
    async def left(ctx: Context) -> str:
        pipeline = ctx.conn.pipeline()
        opened = await pipeline.__aenter__()
        await notes.add(ctx, "a")
        await notes.add(ctx, "b")
        if synced:
            await opened.sync()
        return "x"

    @job(transactional=True, max_attempts=1)
    async def after(ctx: Context) -> str:
        await notes.add(ctx, "after")
        return "y"

    async with build(left, after, transaction_pool_size=1) as engine:
        first = engine._worker
        await (await engine.insert(after.bind())).result(timeout=15)  # prepares what commits
        await sql(f"TRUNCATE {notes.table}")
        found = await ended(await engine.insert(left.bind()))
        assert found.status == "failed"
        assert "a pipeline of the step is still open" in found.error["message"]  # type: ignore[index]
        assert await notes.all() == []
        for _ in range(2):
            found = await ended(await engine.insert(after.bind()))
            assert (found.status, found.error) == ("done", None), "the next steps suffer"
        assert await notes.all() == ["after", "after"]
        assert engine._worker is first


@pytest.mark.parametrize("how", ["DEALLOCATE ALL", "DEALLOCATE PREPARE ALL"])
async def test_deallocate_all(build: Build, notes: Notes, how: str) -> None:
    """A step that throws away what is prepared runs again at most, and the connection serves the next."""

    @job(transactional=True, max_attempts=1)
    async def throws(ctx: Context) -> int:
        await ctx.conn.execute(how)
        return 1

    @job(transactional=True, max_attempts=1)
    async def fine(ctx: Context) -> int:
        await notes.add(ctx, "fine")
        return 1

    async with build(throws, fine, transaction_pool_size=1) as engine:
        for one in (fine, throws, fine, fine, throws, fine):
            found = await ended(await engine.insert(one.bind()))
            assert found.status == "done"


async def test_another_client_encoding(build: Build, notes: Notes) -> None:
    """R8: a result that the step gives is the result that is stored."""

    @job(transactional=True, max_attempts=1)
    async def speaks(ctx: Context, how: str) -> str:
        await ctx.conn.execute(f"{how} client_encoding = 'LATIN1'")
        return "größe €"

    @job(transactional=True, max_attempts=1)
    async def after(ctx: Context) -> str:
        return "größe €"

    async with build(speaks, after, transaction_pool_size=1) as engine:
        for one in (speaks.bind(how="SET LOCAL"), after.bind(), speaks.bind(how="SET"), after.bind()):
            found = await ended(await engine.insert(one))
            assert (found.status, found.result) == ("done", "größe €")


@pytest.mark.parametrize("is_async", [True, False])
async def test_very_large_outcomes_and_answers(build: Build, notes: Notes, sql: Sql, is_async: bool) -> None:
    """The statements are longer than all buffers; the server talks (notices) while it is being sent to."""
    big = "x" * 30_000_000

    @job(transactional=True, max_attempts=1)
    async def on_loop(ctx: Context) -> str:
        await ctx.conn.execute("SET LOCAL client_min_messages = debug5")
        return big

    @job(transactional=True, max_attempts=1)
    def in_thread(ctx: Context) -> str:
        ctx.conn.execute("SET LOCAL client_min_messages = debug5")
        return big

    one = on_loop if is_async else in_thread
    async with build(one, transaction_pool_size=1, max_state_bytes=40_000_000) as engine:
        handles = [await engine.insert(one.bind()) for _ in range(3)]
        for handle in handles:
            assert len(await handle.result(timeout=60)) == len(big)
        assert len(await idle_backends(sql, engine)) == 1


async def test_listen_and_notify_on_the_connection(build: Build, notes: Notes, sql: Sql) -> None:
    """Notifications on a connection that stays: steps go on, with begun and with own transactions."""

    @job(transactional=True, max_attempts=1)
    async def listens(ctx: Context, number: int) -> int:
        await ctx.conn.execute("LISTEN rv")
        for other in range(20):
            await ctx.conn.execute("SELECT pg_notify('rv', %s)", (f"{number} {other}",))
        await notes.add(ctx, f"{number:02}")
        return number

    async with build(listens, transaction_pool_size=2, queues={"default": 20}) as engine:
        handles = [await engine.insert(listens.bind(number=number)) for number in range(20)]
        for number, handle in enumerate(handles):
            assert await handle.result(timeout=15) == number
        assert len(await idle_backends(sql, engine)) <= 2
    assert len(await notes.all()) == 20
