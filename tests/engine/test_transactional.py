"""R5: what a transactional step writes and its outcome commit together, whatever the outcome, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from engine_support import Build, Seen, Sql, ended, failure
from psycopg.rows import dict_row
from transactional_support import Notes, idle_backends

from gen_durable import (
    Await,
    Backoff,
    Cancel,
    Context,
    Done,
    Job,
    Machine,
    Next,
    Outcome,
    Retry,
    Sleep,
    Spawn,
    Stop,
    child,
    job,
    step,
    testing,
)
from gen_durable.errors import DefinitionError, InvalidArgument, TransactionError

# Each kind of step ----------------------------------------------------------------------------------


async def test_async_and_plain_jobs_and_machines_write_in_their_own_transaction(build: Build, notes: Notes) -> None:
    """R5: of each kind: one row is written, and it is there when the instance has ended."""

    @job(transactional=True)
    async def on_the_loop(ctx: Context) -> str:
        await notes.add(ctx, "async")
        return type(ctx.conn).__mro__[1].__name__

    @job(transactional=True)
    def in_a_thread(ctx: Context) -> str:
        ctx.conn.execute(notes.insert, (ctx.id, "def"))
        return type(ctx.conn).__mro__[1].__name__

    class AsClass(Job, transactional=True):
        async def run(self, ctx: Context) -> None:
            await notes.add(ctx, "Job")

    class Steps(Machine, transactional=True):
        @step
        async def first(self, ctx: Context) -> Next:
            await notes.add(ctx, "first")
            return Next(self.second)

        @step(transactional=False)
        async def second(self, ctx: Context) -> Next:
            with pytest.raises(TransactionError, match=r"step 'second' is not transactional; declare it @step\("):
                _ = ctx.conn
            with pytest.raises(TransactionError, match=r"ctx.session: step 'second' is not transactional"):
                _ = ctx.session
            return Next(self.third)

        @step
        def third(self, ctx: Context) -> Done:
            ctx.conn.execute(notes.insert, (ctx.id, "third"))
            return Done()

    async with build(on_the_loop, in_a_thread, AsClass, Steps) as engine:
        handles = [await engine.insert(one) for one in (on_the_loop.bind(), in_a_thread.bind(), AsClass(), Steps())]
        results = [await handle.result(timeout=15) for handle in handles]
    assert results[:2] == ["AsyncConnection", "Connection"]
    assert await notes.all() == ["Job", "async", "def", "first", "third"]


OUTCOMES: dict[str, Any] = {
    "next": lambda self: Next(self.last),
    "next later": lambda self: Next(self.last, delay=0.01),
    "retry": lambda self: Retry(delay=0),
    "sleep": lambda self: Sleep(0.01, then=self.last),
    "await": lambda self: Await("go", then=self.last, timeout=0.01),
    "spawn": lambda self: Spawn([child(Leaf(), key="leaf")], then=self.last),
    "spawn none": lambda self: Spawn([], then=self.last),
    "done": lambda self: Done("result"),
    "stop": lambda self: Stop("reason"),
}


class Leaf(Machine, name="leaf"):
    @step
    async def only(self, ctx: Context) -> Done:
        return Done()


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
@pytest.mark.parametrize("kind", OUTCOMES)
async def test_every_outcome_commits_with_what_its_step_wrote(
    build: Build, notes: Notes, sql: Sql, kind: str, is_async: bool
) -> None:
    """R3, R5: the row and the transition have the same transaction: the row's xmin is the transition's or end's."""

    class Both(Machine, name="both"):
        runs: int = 0

        if is_async:

            @step(transactional=True)
            async def first(self, ctx: Context) -> Outcome:
                await notes.add(ctx, f"run {self.runs}")
                return self.outcome()
        else:

            @step(transactional=True)
            def first(self, ctx: Context) -> Outcome:  # type: ignore[misc]
                ctx.conn.execute(notes.insert, (ctx.id, f"run {self.runs}"))
                return self.outcome()

        def outcome(self) -> Outcome:
            self.runs += 1
            if self.runs == 2:
                return Done("twice")
            given: Outcome = OUTCOMES[kind](self)
            return given

        @step
        async def last(self, ctx: Context) -> Done:
            return Done(len(ctx.children))

    async with build(Both, Leaf) as engine:
        handle = await engine.insert(Both())
        found = await ended(handle)
        await idle_backends(sql, engine)
    assert found.status == ("failed" if kind == "stop" else "done"), found
    assert found.result == {"done": "result", "stop": None, "retry": "twice", "spawn": 1}.get(kind, 0)
    assert await notes.all() == (["run 0", "run 1"] if kind == "retry" else ["run 0"])
    writes = {str(x) for (x,) in await sql(f"SELECT xmin FROM {notes.table} WHERE what = 'run 0'")}
    table, seq = ("finished", "rev") if kind in ("done", "stop") else ("transitions", "seq")
    columns = "id" if table == "finished" else "instance_id"
    first = await sql(f"SELECT xmin FROM {{s}}.{table} WHERE {columns} = %s ORDER BY {seq} LIMIT 1", handle.id)
    assert {str(x) for (x,) in first} == writes


async def test_a_chain_runs_ahead_under_one_claim(build: Build, notes: Notes, sql: Sql) -> None:
    """R1, R5: each step of a chain commits with its own transaction before the next starts; the claim stays."""

    class Chain(Machine, transactional=True):
        n: int = 0
        seen: list[int] = []

        @step
        async def count(self, ctx: Context) -> Next | Done:
            rows = await (await ctx.conn.execute(f"SELECT count(*) FROM {notes.table}")).fetchone()
            self.seen.append(rows[0])
            await notes.add(ctx, str(self.n))
            self.n += 1
            return Next(self.count) if self.n < 10 else Done(self.seen)

    engine = build(Chain)
    claims, commits = Seen(engine, "claim"), Seen(engine, "commit")
    async with engine:
        assert await (await engine.insert(Chain())).result(timeout=15) == list(range(10))
    assert sum(event.size for event in commits.all) == 10
    assert sum(event.size for event in claims.all if hasattr(event, "size")) <= 1


# Errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_an_error_rolls_back_and_goes_its_ordinary_way(
    build: Build, notes: Notes, sql: Sql, is_async: bool
) -> None:
    """R5: nothing of a failed run stays; the handler of errors runs after the rollback, and its outcome commits."""
    seen: list[Any] = []

    class Flaky(Machine):
        if is_async:

            @step(transactional=True, retry=Backoff(max_attempts=3, initial=0.0, jitter=False))
            async def only(self, ctx: Context) -> Done:
                await notes.add(ctx, f"attempt {ctx.attempt}")
                if ctx.attempt < 2:
                    raise ValueError("not yet")
                return Done(ctx.attempt)
        else:

            @step(transactional=True, retry=Backoff(max_attempts=3, initial=0.0, jitter=False))
            def only(self, ctx: Context) -> Done:  # type: ignore[misc]
                ctx.conn.execute(notes.insert, (ctx.id, f"attempt {ctx.attempt}"))
                if ctx.attempt < 2:
                    raise ValueError("not yet")
                return Done(ctx.attempt)

        async def on_error(self, error: Exception, ctx: Context) -> Outcome:
            seen.append((str(error), await notes.all()))
            with pytest.raises(TransactionError):
                _ = ctx.conn
            raise error

    async with build(Flaky) as engine:
        assert await (await engine.insert(Flaky())).result(timeout=15) == 2
        assert len(await idle_backends(sql, engine)) == 1, "one connection, used again"
    assert seen == [("not yet", []), ("not yet", [])]
    assert await notes.all() == ["attempt 2"]


@pytest.mark.parametrize("how", ["wrong outcome", "wrong state", "too large", "cancel", "not a step"])
async def test_an_outcome_that_can_t_be_is_an_error_of_its_step(build: Build, notes: Notes, how: str) -> None:
    """R5, R8: what the engine refuses after the step's code rolls its SQL back too."""

    class Wrong(Machine):
        text: str = ""

        @step(transactional=True)
        async def only(self, ctx: Context) -> Any:
            await notes.add(ctx, "never")
            match how:
                case "wrong outcome":
                    return 5
                case "wrong state":
                    self.text = 5  # type: ignore[assignment]
                case "too large":
                    self.text = "x" * 2000
                case "cancel":
                    raise Cancel("no more")
                case _:
                    return Next("nowhere")
            return Done()

    async with build(Wrong, max_state_bytes=1000) as engine:
        found = await ended(await engine.insert(Wrong()))
    assert found.status == ("cancelled" if how == "cancel" else "failed")
    assert await notes.all() == []


async def test_a_child_s_key_that_is_taken_rolls_back(build: Build, notes: Notes) -> None:
    """R5, R16: the step gets the duplicate as its error, when nothing of its transaction is left."""
    seen: list[Any] = []

    class Parent(Machine):
        @step(transactional=True)
        async def only(self, ctx: Context) -> Spawn:
            await notes.add(ctx, "never")
            return Spawn([Leaf(), child(Leaf(), key="taken")], then=self.only)

        async def on_error(self, error: Exception, ctx: Context) -> Outcome:
            seen.append((type(error).__name__, await notes.all()))
            return Stop("taken")

    async with build(Parent, Leaf) as engine:
        await engine.insert(Leaf(), key="taken", delay=60)
        assert (await ended(await engine.insert(Parent()))).status == "failed"
        assert len((await engine.list(machine="leaf")).items) == 1
    assert seen == [("DuplicateInstance", [])]
    assert await notes.all() == []


async def test_a_deferred_constraint_is_an_error_of_the_step(build: Build, notes: Notes, sql: Sql) -> None:
    """R5: it fails at the COMMIT: nothing is written, the outcome neither, and the retry policy decides."""
    await sql("CREATE TABLE {s}.pairs (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    await sql("INSERT INTO {s}.pairs VALUES (1)")
    table = notes.table.replace("notes", "pairs")

    @job(transactional=True, retry=Backoff(max_attempts=2, initial=0.0, jitter=False))
    async def insert(ctx: Context) -> None:
        await notes.add(ctx, "never")
        await ctx.conn.execute(f"INSERT INTO {table} VALUES (1)")

    async with build(insert) as engine:
        handle = await engine.insert(insert.bind())
        error = await failure(handle)
        assert (await handle.get()).attempt == 1
    assert error["type"] == "psycopg.errors.UniqueViolation"
    assert await notes.all() == []


async def test_a_swallowed_error_is_told_and_a_savepoint_mends_it(build: Build, notes: Notes) -> None:
    """R5: an aborted transaction is no success; what failed inside a savepoint leaves the rest."""

    class Step(Job, max_attempts=1, transactional=True):
        savepoint: bool

        async def run(self, ctx: Context) -> str:
            await notes.add(ctx, f"before {self.savepoint}")
            try:
                if self.savepoint:
                    async with ctx.conn.transaction():
                        await notes.add(ctx, "inside")
                        await ctx.conn.execute("SELECT 1 / 0")
                else:
                    await ctx.conn.execute("SELECT 1 / 0")
            except psycopg.errors.DivisionByZero:
                pass
            return "went on"

    async with build(Step) as engine:
        error = await failure(await engine.insert(Step(savepoint=False)))
        assert await (await engine.insert(Step(savepoint=True))).result(timeout=15) == "went on"
    assert "TransactionError" in error["type"]
    assert "aborted: a statement failed, and the step went on" in error["message"]
    assert await notes.all() == ["before True"]


# The connection -------------------------------------------------------------------------------------


async def test_a_step_s_connection_is_an_ordinary_one(build: Build, sql: Sql) -> None:
    """Section 9: tuple rows, the server's own settings; what a step sets on the object is gone for the next."""
    names = ["search_path", "enable_seqscan", "plan_cache_mode", "statement_timeout", "lock_timeout", "jit"]
    shown = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)

    @job(transactional=True)
    async def look(ctx: Context, n: int) -> Any:
        found = await (await ctx.conn.execute(shown)).fetchone()
        assert isinstance(found, tuple)
        ctx.conn.row_factory = dict_row
        ctx.conn.prepare_threshold = None
        return [ctx.conn.info.backend_pid, *found]

    async with build(look) as engine:
        pids = set()
        for n in range(3):
            pid, *found = await (await engine.insert(look.bind(n=n))).result(timeout=15)
            pids.add(pid)
            assert [tuple(found)] == await sql(shown)
        assert len(pids) == 1, "the connection is kept"


async def test_a_context_gives_nothing_after_its_run(build: Build) -> None:
    """R5: a task that a step left behind can't write into another step's transaction."""
    kept: list[Context] = []

    @job(transactional=True)
    async def leak(ctx: Context) -> None:
        kept.append(ctx)

    async with build(leak) as engine:
        await (await engine.insert(leak.bind())).result(timeout=15)
    with pytest.raises(TransactionError, match=r"ctx\.conn: its run is over"):
        _ = kept[0].conn
    with pytest.raises(TransactionError, match=r"ctx\.session: its run is over"):
        _ = kept[0].session


async def test_the_mark_tells_triggers_which_instance_writes(build: Build, notes: Notes, sql: Sql) -> None:
    """Section 9: gen_durable.step holds the instance's id inside the transaction, and nothing afterwards."""

    @job(transactional=True)
    async def marked(ctx: Context) -> bool:
        row = await (await ctx.conn.execute("SELECT current_setting('gen_durable.step')")).fetchone()
        return bool(row == (str(ctx.id),))

    async with build(marked) as engine:
        assert await (await engine.insert(marked.bind())).result(timeout=15) is True


async def test_steps_wait_for_a_connection_and_hold_nobody_up(build: Build) -> None:
    """Section 9: with one connection one runs at a time; steps of other kinds go on beside those that wait."""
    inside: asyncio.Queue[int] = asyncio.Queue()
    go = asyncio.Event()
    most = [0, 0]

    @job(transactional=True)
    async def narrow(ctx: Context) -> None:
        most[0] += 1
        most[1] = max(most)
        inside.put_nowait(ctx.id)
        await go.wait()
        most[0] -= 1

    @job
    async def plain() -> str:
        return "done"

    async with build(narrow, plain, transaction_pool_size=1, queues={"default": 8}) as engine:
        handles = [await engine.insert(narrow.bind()) for _ in range(5)]
        await asyncio.wait_for(inside.get(), 15)
        assert await (await engine.insert(plain.bind())).result(timeout=15) == "done"
        assert inside.empty()
        go.set()
        for handle in handles:
            await handle.result(timeout=15)
    assert most == [0, 1]


# Declared wrongly -----------------------------------------------------------------------------------


def test_wrong_declarations_are_refused() -> None:
    """R7: at the definition, with the mend."""
    with pytest.raises(DefinitionError, match="transactional must be True or False, not 1"):

        @step(transactional=1)  # type: ignore[arg-type]
        async def one(self: Any, ctx: Context) -> Done: ...

    with pytest.raises(DefinitionError, match="transactional must be True or False, not 'yes'"):

        class Two(Job, transactional="yes"):
            async def run(self, ctx: Context) -> None: ...

    with pytest.raises(DefinitionError, match="three is transactional, but has no parameter annotated Context"):

        @job(transactional=True)
        async def three(n: int) -> None: ...


async def test_a_step_can_be_called_with_a_connection_of_the_test() -> None:
    """Section 13: a context for a plain call takes ``conn`` and ``session``."""
    assert testing.context(conn=5).conn == 5
    assert testing.context(session=6).session == 6
    with pytest.raises(InvalidArgument, match="no attribute '_conn'"):
        testing.context(_conn=5)
