"""Rows that an insert brings into being as claims of the same process's worker: nobody has to claim them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from engine_support import LONG, Build, Seen, Sql, eventually, moment

from gen_durable import Engine, Handle, job
from gen_durable._runtime import births
from gen_durable._runtime.worker import Worker
from gen_durable._store.inserting import LaneKey
from gen_durable._store.operation import Request, Row
from gen_durable.client.inserting import BulkItem
from gen_durable.errors import DatabaseUnreachable, DuplicateInstance

runs: list[int] = []


@job
async def note(n: int) -> int:
    runs.append(n)
    return n


@pytest.fixture(autouse=True)
def no_runs() -> None:
    runs.clear()


@contextlib.asynccontextmanager
async def quiet(build: Build, *machines: Any, **settings: Any) -> AsyncIterator[Engine]:
    """An engine whose worker has looked and found nothing, and that knows its lanes: nothing more is announced."""
    async with build(*(machines or (note,)), poll_interval=60, **settings) as engine:
        worker = worker_of(engine)
        known = worker._claimer.specs.items()
        # The first heartbeat may say that there are new lanes: that is heard now, or not at all.
        worker.lanes_changed = lambda: None  # type: ignore[method-assign]
        await moment(0.01)
        await asyncio.gather(*worker._learning)
        engine._lanes.update({LaneKey(queue.name, spec.name, spec.version): lane for lane, (spec, queue) in known})
        await idle(worker)
        yield engine


def worker_of(engine: Engine) -> Worker:
    assert engine._worker is not None
    return engine._worker


async def idle(worker: Worker) -> None:
    async def check() -> bool:
        return all(queue.empty for queue in worker.queues.values()) and not worker._claimer.claiming

    await eventually(check)


def kept(worker: Worker) -> int:
    return sum(queue.expected for queue in worker.queues.values())


class Gate:
    """Stands between the client and the answer of its next insert (or other statement): it is done, unknown to it."""

    def __init__(self, engine: Engine, error: BaseException | None = None, statement: str = "inserting/") -> None:
        self._statement = statement  # or how its name begins
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self._error = error
        self._fetch = engine._session.fetch
        self._session = engine._session
        engine._session.fetch = self._pass  # type: ignore[method-assign]

    async def _pass(self, request: Request) -> list[Row]:
        if not request.statement.name.startswith(self._statement):
            return await self._fetch(request)
        self._session.fetch = self._fetch  # type: ignore[method-assign]  # only this one
        rows = await self._fetch(request)
        self.reached.set()
        await self.open.wait()
        if self._error is not None:
            raise self._error
        return rows


@pytest.fixture
async def key_taken(connect: Callable[[], Any], migrated: str) -> Any:
    """A transaction that is just inserting the key "k": an insert of the same key waits until it is rolled back."""
    connection = await connect()
    await connection.execute("BEGIN")
    await connection.execute(
        f"INSERT INTO {migrated}.instances (due_at, inserted_at, updated_at, lane, status, step, key, state) "
        "VALUES (now(), now(), now(), 0, 1, 's', 'k', '{}')".encode()
    )
    return connection


async def until_waiting(sql: Sql, engine: Engine) -> None:
    """Until the engine's insert waits for the key."""
    query = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    await eventually(lambda: sql(query, f"gen_durable {engine.settings.name}"))


async def row(sql: Sql, columns: str = "status, worker, rev, attempt, crashes") -> tuple[Any, ...]:
    ((*found,),) = await sql(f"SELECT {columns} FROM {{s}}.instances")
    return tuple(found)


# Where it goes well ---------------------------------------------------------------------------------


async def test_a_row_for_an_idle_worker_is_born_as_its_claim(build: Build, sql: Sql) -> None:
    """R19: its step starts without a claim; it runs once, and has the history of any other."""
    seen: list[tuple[Any, ...]] = []

    @job
    async def look(n: list[float]) -> list[float]:
        seen.append(await row(sql, "status, worker, rev, attempt, crashes, state::text"))
        return n

    async with quiet(build, look) as engine:
        claims, starts = Seen(engine, "claim"), Seen(engine, "step")
        handle = await engine.insert(look.bind(n=[1.0, 1e22]), priority=7)
        assert await handle.result(timeout=LONG) == [1.0, 1e22]
        worker = worker_of(engine)
        assert seen == [(2, worker.id, 0, 0, 0, seen[0][5])]
        found = await handle.get()
        assert (found.rev, found.attempt, found.crashes, found.worker) == (1, 0, 0, worker.id)
        assert (found.priority, found.state) == (7, {"n": [1.0, 1e22]})
        assert [(t.seq, t.outcome) for t in await engine.history(handle.id)] == [(1, "done")]
        assert claims.all == []
        assert len(starts.all) == 1
        assert kept(worker) == 0
        assert not worker._births.under_way


async def test_what_the_worker_has_no_place_for_waits_as_ever(build: Build, sql: Sql) -> None:
    """R17, R18: as many as it has places for, by priority; else all rows of the call are claimed."""
    gate = asyncio.Event()

    @job
    async def stay(n: int) -> None:
        runs.append(n)
        await gate.wait()

    async with quiet(build, stay, queues={"default": 4}, prefetch=0) as engine:
        worker = worker_of(engine)
        claims = Seen(engine, "claim")
        await engine.insert_many([BulkItem(stay.bind(n=n), priority=-n) for n in range(3)])
        await eventually(lambda: _true(len(runs) == 3))
        assert runs == [2, 1, 0]
        assert claims.all == []
        assert kept(worker) == 0
        await engine.insert_many([stay.bind(n=n) for n in range(3, 5)])
        await eventually(lambda: _true(len(runs) == 4))
        assert sorted(await sql("SELECT status, rev FROM {s}.instances")) == [(0, 0)] + [(2, 0)] * 3 + [(2, 1)]
        await engine.insert(stay.bind(n=5))
        gate.set()
        await eventually(lambda: _true(sorted(runs) == list(range(6))))


async def _true(value: bool) -> bool:
    return value


REASONS: dict[str, Callable[[Worker], Any]] = {
    "its life is over": lambda worker: setattr(worker._births, "over", True),
    "it drains": lambda worker: setattr(worker._claimer, "closing", True),
    "a claim is under way": lambda worker: setattr(worker._claimer, "claiming", True),
    "claims fail": lambda worker: setattr(worker._claimer, "failing", True),
    "commits fail": lambda worker: setattr(worker._flusher._main, "failing", True),
    "the queue is closed": lambda worker: setattr(worker.queues["default"], "closed", True),
    "the queue is paused": lambda worker: setattr(worker.queues["default"], "paused", True),
    "something is announced": lambda worker: setattr(worker.queues["default"], "empty", False),
    "others wait to be started": lambda worker: worker.queues["default"].buffer.extend(cast("Any", [None] * 50)),
    "others are being born": lambda worker: setattr(worker.queues["default"], "expected", 50),
    "it does not know the lane": lambda worker: worker._claimer.specs.clear(),
}


@pytest.mark.parametrize("reason", REASONS)
async def test_when_no_place_is_kept(build: Build, reason: str) -> None:
    """R17: nothing that waits is passed by, and nothing is promised that could not be kept."""
    async with quiet(build) as engine:
        worker = worker_of(engine)
        claimer, flusher, queue = worker._claimer, worker._flusher, worker.queues["default"]
        (lane,) = specs = dict(claimer.specs)
        REASONS[reason](worker)
        refused = worker.expect({lane: 1})
        queue.buffer.clear()
        worker._births.over = claimer.closing = claimer.claiming = claimer.failing = flusher._main.failing = False
        queue.closed = queue.paused = False
        queue.empty, queue.expected = True, 0
        claimer.specs.update(specs)
        assert refused is None
        birth = worker.expect({lane: 50})
        assert birth is not None
        assert worker.expect({lane: 1}) is None
        with birth:
            pass
        assert kept(worker) == 0


async def test_a_key_that_is_taken_gives_its_place_back(build: Build) -> None:
    """R16"""
    gate = asyncio.Event()

    @job
    async def stay() -> None:
        await gate.wait()

    async with quiet(build, stay) as engine:
        first = await engine.insert(stay.bind(), key="k")
        with pytest.raises(DuplicateInstance):
            await engine.insert(stay.bind(), key="k")
        assert (await engine.insert(stay.bind(), key="k", on_conflict="existing")).id == first.id
        worker = worker_of(engine)
        assert kept(worker) == 0
        announced = not worker.queues["default"].empty
        gate.set()
        assert not announced
        await first.result(timeout=LONG)


@pytest.mark.parametrize("ended", [True, False])
async def test_a_place_that_is_given_back_goes_to_what_was_announced_meanwhile(
    build: Build, sql: Sql, key_taken: Any, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """R19: the claimer slept, because the only place was kept; one that waits for a lock keeps none for long."""
    if ended:
        monkeypatch.setattr(births, "LONGEST_KEPT", 60.0)
    async with quiet(build, queues={"default": 1}) as engine, build(note, queues={}) as web:
        born = asyncio.create_task(engine.insert(note.bind(n=1), key="k"))
        await until_waiting(sql, engine)
        other = await web.insert(note.bind(n=2))
        if ended:
            await eventually(lambda: _true(not worker_of(engine).queues["default"].empty))
            born.cancel()
            await asyncio.gather(born, return_exceptions=True)
        assert await other.result(timeout=LONG) == 2
        assert runs == [2]
        if not ended:
            await key_taken.execute("ROLLBACK")
            assert await (await born).result(timeout=LONG) == 1
            assert kept(worker_of(engine)) == 0


# Where the database does not agree ------------------------------------------------------------------


async def test_no_row_is_born_to_a_worker_that_is_not_known(build: Build, sql: Sql) -> None:
    """R25: one that was declared dead and has not heard of it would lose it at the price of a crash."""
    async with quiet(build, lease=60, heartbeat=20) as engine:
        await sql("DELETE FROM {s}.workers")
        handle = await engine.insert(note.bind(n=1))
        assert await row(sql) == (0, None, 0, 0, 0)
        async with build(note):
            assert await handle.result(timeout=LONG) == 1


async def test_no_row_is_born_in_a_paused_queue(build: Build, sql: Sql) -> None:
    """R20: also where the worker has not heard of the pause yet."""
    async with quiet(build, lease=60, heartbeat=20) as engine:
        await sql("UPDATE {s}.lanes SET paused = true")
        handle = await engine.insert(note.bind(n=1))
        await moment(0.1)
        assert await row(sql) == (0, None, 0, 0, 0)
        await engine.resume_queue("default")
        assert await handle.result(timeout=LONG) == 1


# While the answer is on its way ---------------------------------------------------------------------


async def test_a_look_for_lost_claims_leaves_rows_whose_answer_is_on_its_way(build: Build, sql: Sql) -> None:
    """R25: it is there, it is ours, and we can't know it yet."""
    async with quiet(build) as engine:
        worker, gate = worker_of(engine), Gate(engine)
        inserting = asyncio.create_task(engine.insert(note.bind(n=1)))
        await gate.reached.wait()
        for _ in range(2):
            await worker._claimer.check()
            assert await row(sql) == (2, worker.id, 0, 0, 0)
        gate.open.set()
        assert await (await inserting).result(timeout=LONG) == 1
        assert runs == [1]


async def test_a_look_for_lost_claims_while_an_insert_waits_for_a_key(build: Build, sql: Sql, key_taken: Any) -> None:
    """R25: the same where the row is not there yet."""
    async with quiet(build) as engine:
        inserting = asyncio.create_task(engine.insert(note.bind(n=1), key="k"))
        await until_waiting(sql, engine)
        await worker_of(engine)._claimer.check()
        await key_taken.execute("ROLLBACK")
        handle = await inserting
        assert await handle.result(timeout=LONG) == 1
        found = await handle.get()
        assert (found.rev, found.crashes, runs) == (1, 0, [1])


async def test_a_row_whose_answer_was_lost_goes_back_at_once(build: Build) -> None:
    """R27: the insert says that it does not know; the row is there, and runs once."""
    async with quiet(build) as engine:
        gate = Gate(engine, DatabaseUnreachable("cut"))
        gate.open.set()
        with pytest.raises(DatabaseUnreachable):
            await engine.insert(note.bind(n=1))
        await eventually(lambda: _true(runs == [1]), timeout=5)
        (found,) = await eventually(lambda: _ended(engine))
        assert (found.rev, found.attempt, found.crashes) == (3, 0, 0)
        assert kept(worker_of(engine)) == 0


async def _ended(engine: Engine) -> list[Any]:
    return (await engine.list(status="done")).items


async def test_a_lost_row_waits_only_for_the_inserts_that_could_be_its_own(build: Build, sql: Sql) -> None:
    """R27: while another insert is under way nobody can tell whose row it is; later ones change nothing."""
    async with quiet(build) as engine:
        worker = worker_of(engine)
        other = Gate(engine)
        waiting = asyncio.create_task(engine.insert(note.bind(n=2)))
        await other.reached.wait()
        gate = Gate(engine, DatabaseUnreachable("cut"))
        gate.open.set()
        with pytest.raises(DatabaseUnreachable):
            await engine.insert(note.bind(n=1))
        await worker._claimer.check()
        assert await sql("SELECT status, worker, rev FROM {s}.instances") == [(2, worker.id, 0)] * 2
        later = Gate(engine)
        third = asyncio.create_task(engine.insert(note.bind(n=3)))
        await later.reached.wait()
        other.open.set()
        assert await (await waiting).result(timeout=LONG) == 2
        await eventually(lambda: _true(sorted(runs) == [1, 2]), timeout=5)
        later.open.set()
        assert await (await third).result(timeout=LONG) == 3
        assert sorted(runs) == [1, 2, 3]
        assert await sql("SELECT max(crashes), max(attempt) FROM {s}.finished") == [(0, 0)]


@pytest.mark.parametrize("written", [True, False])
async def test_an_insert_that_is_cancelled(
    build: Build, sql: Sql, key_taken: Any, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R25: before its row is there there is none; after that it runs as any other. The place is free in both cases."""
    monkeypatch.setattr(births, "LONGEST_KEPT", 60.0)
    async with quiet(build, queues={"default": 1}) as engine:
        worker = worker_of(engine)
        gate = Gate(engine)
        inserting = asyncio.create_task(engine.insert(note.bind(n=1), key=None if written else "k"))
        await (gate.reached.wait() if written else until_waiting(sql, engine))
        assert kept(worker) == 1
        inserting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await inserting
        assert kept(worker) == 0
        await key_taken.execute("ROLLBACK")
        assert await (await engine.insert(note.bind(n=2))).result(timeout=LONG) == 2
        if written:
            await eventually(lambda: _true(sorted(runs) == [1, 2]))
        else:
            assert await sql("SELECT FROM {s}.instances") == []
            assert runs == [2]


# While the worker's life ends -----------------------------------------------------------------------


async def _stopped(build: Build, sql: Sql, engine: Engine, handle: Handle) -> None:
    """The row went back as it was, and the next worker runs it."""
    assert await row(sql) == (0, None, 1, 0, 0)
    assert runs == []
    async with build(note) as next_one:
        assert await next_one.result(handle.id, timeout=LONG) == 1
        assert runs == [1]


async def test_a_drain_waits_for_an_insert_that_is_under_way(build: Build, sql: Sql, key_taken: Any) -> None:
    """R5, R26: its row is not started any more; it goes back at once, and no crash is spent."""
    async with quiet(build) as engine:
        worker = worker_of(engine)
        inserting = asyncio.create_task(engine.insert(note.bind(n=1), key="k"))
        await until_waiting(sql, engine)
        stopping = asyncio.create_task(engine.stop())
        await eventually(lambda: _true(worker.queues["default"].closed))
        await moment(0.3)
        assert not stopping.done()
        await key_taken.execute("ROLLBACK")
        handle = await inserting
        await stopping
    await _stopped(build, sql, engine, handle)


async def test_a_drain_whose_time_is_up_still_hears_of_the_row(build: Build, sql: Sql, key_taken: Any) -> None:
    """R5, R26: within the time that a statement has."""
    async with quiet(build, drain_timeout=0.1) as engine:
        worker = worker_of(engine)
        inserting = asyncio.create_task(engine.insert(note.bind(n=1), key="k"))
        await until_waiting(sql, engine)
        late = asyncio.Event()
        wait_over = worker._births.wait_over

        async def wait() -> None:
            late.set()
            await wait_over()

        worker._births.wait_over = wait  # type: ignore[method-assign]
        stopping = asyncio.create_task(engine.stop())
        await asyncio.wait_for(late.wait(), LONG)
        await key_taken.execute("ROLLBACK")
        handle = await inserting
        await stopping
    await _stopped(build, sql, engine, handle)


async def test_a_drain_looks_for_the_row_of_an_insert_whose_answer_was_lost(build: Build, sql: Sql) -> None:
    """R26, R27"""
    async with quiet(build) as engine:
        worker = worker_of(engine)
        gate = Gate(engine, DatabaseUnreachable("cut"))
        inserting = asyncio.create_task(engine.insert(note.bind(n=1)))
        await gate.reached.wait()
        ((id_,),) = await sql("SELECT id FROM {s}.instances")
        stopping = asyncio.create_task(engine.stop())
        await eventually(lambda: _true(worker.queues["default"].closed))
        gate.open.set()
        with pytest.raises(DatabaseUnreachable):
            await inserting
        await stopping
    await _stopped(build, sql, engine, Handle(id_, None, "note", engine))


async def test_a_row_that_is_born_to_a_life_that_has_ended_goes_back(build: Build, sql: Sql) -> None:
    """R25: the worker was declared dead meanwhile; its next life, under another id, runs the row once."""
    async with quiet(build) as engine:
        worker = worker_of(engine)
        gate = Gate(engine)
        inserting = asyncio.create_task(engine.insert(note.bind(n=1)))
        await gate.reached.wait()
        worker.declared_dead()
        gate.open.set()
        handle = await inserting
        assert await handle.result(timeout=LONG) == 1
        found = await handle.get()
        assert found.worker not in (None, worker.id)
        assert runs == [1]
