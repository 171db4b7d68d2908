"""Limits, against a model: whatever happens in whatever order, nothing runs over its limits and nothing is forgotten.

Hypothesis draws the order of inserts, looks, claims, outcomes, deaths, cancels, changes of limits and refills, also
while another connection has an open transaction. ``GEN_DURABLE_MODEL_EXAMPLES`` sets how many orders are tried.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from limits_draws import DUMP, FAR, bundles, lines, most, outcome
from limits_model import AMOUNT, PER, Dump, LimitsModel, Line, LiveRow, Row, looked_at, nothing_forgotten, rest
from sql_stage import Admitted, Connection, Stage, encode

from gen_durable import Engine
from gen_durable._runtime.committer import _frees
from gen_durable._runtime.record import END, ON, WAIT, Record, encode_records
from gen_durable._store.connection import fetch, open_connection, set_up
from gen_durable._store.limiting import Kind, NewLimit, set_limit, tell, telling
from gen_durable._store.operation import drive_together
from gen_durable.status import Status

EXAMPLES = int(os.environ.get("GEN_DURABLE_MODEL_EXAMPLES", "20"))
STEPS = 40
NEAR = 0.15  # seconds: a look that is to come so soon comes at once when the test waits for rest


class Limited(RuleBasedStateMachine):
    runner: asyncio.Runner  # set by the test
    stage: Stage
    other: Connection
    lane: int

    def __init__(self) -> None:
        super().__init__()
        for connection in (self.stage.main, self.other):  # what failed may have left a transaction open
            self.run(connection.rollback())
        for table in ("instances", "finished", "transitions", "signals", "workers", "lines", "knocks", "limits"):
            self.ask(f"DELETE FROM {{schema}}.{table}")
        self.model = LimitsModel()
        self.open = False  # the other connection is amid a transaction

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def ask(self, text: str, *values: Any, on: Connection | None = None) -> list[Any]:
        return self.run(self.stage.ask(text, *values, on=on))

    def dump(self, on: Connection | None = None) -> Dump:
        ((text,),) = self.ask(DUMP, on=on)
        parts = msgspec.json.decode(text)
        rows = [LiveRow(*values) for values in (parts["rows"] or []) + (parts["parked"] or [])]
        found = {line: Line(*values) for line, values in (parts["lines"] or {}).items()}
        return Dump({row.id: row for row in rows}, found, set(parts["knocks"] or ()))

    @initialize(rows=st.lists(bundles, min_size=2, max_size=5), slots=st.integers(1, 3), burst=st.integers(1, 4))
    def start(self, rows: list[Any], slots: int, burst: int) -> None:
        for worker in (1, 2):
            self.run(self.stage.register(worker, seen=-3600.0))
        self.configure("concurrency", "s", slots)
        self.configure("rate", "api", burst)
        self.configure("rate", "ten", 2)
        self.insert(rows, delayed=False)

    @rule(kind=st.sampled_from(["concurrency", "concurrency", "rate"]), amount=st.integers(1, 4))
    def change(self, kind: Kind, amount: int) -> None:
        self.configure(kind, {"concurrency": "s", "rate": "api"}[kind], amount)

    def configure(self, kind: Kind, name: str, amount: int) -> None:
        new = NewLimit(kind, name, AMOUNT, PER, amount) if kind == "rate" else NewLimit(kind, name, amount)

        async def both() -> None:
            async def send(request: Any) -> Any:
                return await fetch(self.stage.main, request)

            changed = await drive_together(telling(self.stage.sql, set_limit(self.stage.sql, new)), send)
            await drive_together(tell(self.stage.sql, changed), send)

        self.run(both())
        if kind == "rate":
            self.model.set_burst(name, amount)
        else:
            self.model.slots[name] = amount

    # Rows come ------------------------------------------------------------------------------------

    @rule(rows=st.lists(bundles, min_size=1, max_size=4), delayed=st.booleans())
    def insert(self, rows: list[Any], delayed: bool) -> None:
        self.come(self.model, rows, delayed)

    def come(
        self, model: LimitsModel, rows: list[Any], delayed: bool, key: str | None = None, on: Connection | None = None
    ) -> None:
        given = [
            {"lane": self.lane, "gate": gate, "own_gate": gate, "rate": rate, "weight": weight, "priority": priority}
            for gate, rate, weight, priority in rows
        ]
        for row in given:
            row |= {"key": key} | ({"delay": FAR} if delayed else {})
        for id_, (gate, rate, weight, priority) in zip(self.run(self.stage.insert(*given, on=on)), rows, strict=True):
            row = model.rows[id_] = Row(id_, gate, gate, rate, weight, priority, key)
            row.status = Status.SCHEDULED if delayed else Status.RUNNABLE if row.line is None else Status.BLOCKED

    @rule(row=bundles, delayed=st.booleans())
    def insert_or_replace(self, row: Any, delayed: bool) -> None:
        there = [one for one in self.model.live() if one.key == "k"]
        if not there:
            self.come(self.model, [row], delayed, key="k")
            return
        gate, rate, weight, priority = row
        new = {"lane": self.lane, "step": "one", "state": {}, "gate": gate, "own_gate": gate, "rate": rate}
        new |= {"weight": weight, "priority": priority} | ({"delay": FAR} if delayed else {})
        done = self.run(self.stage.run("inserting/replace", key="k", row=encode([new]), notify=False, soon=5.0))
        one = there[0]
        assert bool(done) == (one.rev == 0 and one.status in (Status.RUNNABLE, Status.SCHEDULED, Status.BLOCKED))
        if done:
            one.own, one.priority = gate, priority
            one.limits(gate, rate, weight)
            one.due()
            one.status = Status.SCHEDULED if delayed else one.status

    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        ids = self.some(data, self.model.live(Status.SCHEDULED))
        self.ask("UPDATE {schema}.instances SET due_at = {clock} WHERE id = ANY (%s)", [row.id for row in ids])
        self.run(self.stage.run("timing/promote", batch=100))
        for row in ids:
            row.due()

    def some(self, data: st.DataObject, rows: list[Row], most: int = 4) -> list[Row]:
        ids = [row.id for row in rows]
        chosen = data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=most, unique=True)) if ids else []
        return [self.model.rows[id_] for id_ in sorted(chosen)]

    @precondition(lambda self: self.model.live(Status.AWAITING_SIGNAL))
    @rule(data=st.data())
    def signal(self, data: st.DataObject) -> None:
        for row in self.some(data, self.model.live(Status.AWAITING_SIGNAL), 1):
            assert self.run(self.stage.send_for(1, row.id)) is None or row.line is None
            self.adopt_wake(row)

    def adopt_wake(self, row: Row) -> None:
        row.due()
        if row.line is None and not row.crashes:
            row.status, row.worker, row.rev = Status.EXECUTING, 1, row.rev + 1

    @precondition(lambda self: any(row.status in (7, 8) for row in self.model.rows.values()))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        for row in self.some(data, [row for row in self.model.rows.values() if row.status in (7, 8)], 1):
            if row.key is not None and any(one.key == row.key for one in self.model.live()):
                continue
            assert self.run(self.stage.run("steering/retry", id=row.id))
            row.rev, row.crashes = row.rev + 1, 0
            row.home()
            row.due()
            row.status = Status.AWAITING_SIGNAL if row.was_parked else row.status

    # Looks ----------------------------------------------------------------------------------------

    @rule(given=st.one_of(st.none(), lines), places=st.sampled_from([None, None, 0, 1, 3]), most=most)
    def look(self, given: list[str] | None, places: int | None, most: int) -> None:
        self.soon()
        self.admit(self.model, given, places, most)

    def soon(self) -> None:
        """What is to be looked at soon is to be looked at now: chance has no part in what a look finds."""
        self.ask(
            "UPDATE {schema}.lines SET wake_at = {clock} WHERE wake_at < {clock} + make_interval(secs => %s)", NEAR
        )

    def admit(
        self,
        model: LimitsModel,
        given: list[str] | None,
        places: int | None = None,
        most: int = 1000,
        *,
        on: Connection | None = None,
        locked: Collection[int] = (),
        held: Collection[str] = (),
    ) -> Admitted:
        before = self.dump(on=on)
        kept = None if places is None else [(self.lane, 0, places)]
        found = self.run(
            self.stage.admit(*given or (), most=most, worker=None if kept is None else 1, places=kept, on=on)
        )
        after = self.dump(on=on)
        seen = looked_at(found.lines)
        if given is not None:
            due = set(given)
            assert due & set(held) <= after.knocks, "nobody is told of a line that somebody else has"
        else:
            due = before.knocks | {line for line, known in after.lines.items() if before.lines.get(line, known).wake}
        assert seen <= due - set(held)
        if not self.open and most == 1000 and given is not None:
            assert seen == due - set(held)
        came = model.looked(after, seen, locked)
        direct = [row for row in came if row.status == Status.EXECUTING]
        assert sorted(row[0] for row in found.claims) == sorted(row.id for row in direct)
        assert sum(found.queues.values()) == len(came) - len(direct)
        fit = sum(not row.crashes for row in came)
        assert len(direct) == min(places or 0, fit)
        return found

    # Workers --------------------------------------------------------------------------------------

    @rule(worker=st.sampled_from([1, 2]), room=st.integers(1, 6))
    def claim(self, worker: int, room: int) -> None:
        ready = self.model.live(Status.RUNNABLE)
        rows = self.run(self.stage.claim((self.lane, 0, room), worker=worker))
        assert len(rows) == min(room, len(ready))
        for id_, rev, *_ in rows:
            row = self.model.rows[id_]
            assert row in ready
            row.status, row.worker, row.rev = Status.EXECUTING, worker, rev

    def executing(self, worker: int | None = None) -> list[Row]:
        return [row for row in self.model.live(Status.EXECUTING) if worker in (None, row.worker)]

    @precondition(lambda self: self.executing())
    @rule(data=st.data(), look=st.booleans(), places=st.sampled_from([None, 1, 3]))
    def commit(self, data: st.DataObject, look: bool, places: int | None) -> None:
        """R22: outcomes, with a look at what they free in the same transaction, or with knocks there."""
        self.commit_some(data, look, places)

    def commit_some(
        self,
        data: st.DataObject,
        look: bool,
        places: int | None,
        locked: Collection[int] = (),
        held: Collection[str] = (),
    ) -> None:
        ready = [row for row in self.executing() if row.id not in locked]
        worker = data.draw(st.sampled_from(sorted({row.worker for row in ready if row.worker})))
        rows = self.some(data, [row for row in ready if row.worker == worker])
        self.ask("BEGIN")
        freed = self.send(self.model, worker, [outcome(data, row) for row in rows], look=look)
        if look and freed:
            self.admit(self.model, freed, places, locked=locked, held=held)
        self.ask("COMMIT")

    @precondition(lambda self: self.executing())
    @rule(data=st.data(), places=st.sampled_from([None, 0, 1, 3]))
    def end(self, data: st.DataObject, places: int | None) -> None:
        """R21, R22: outcomes that only end rows hand their slots on, and look where nothing can follow at once."""
        self.end_some(data, places)

    def end_some(
        self,
        data: st.DataObject,
        places: int | None,
        locked: Collection[int] = (),
    ) -> None:
        ready = [row for row in self.executing() if row.id not in locked]
        worker = data.draw(st.sampled_from(sorted({row.worker for row in ready if row.worker})))
        rows = self.some(data, [row for row in ready if row.worker == worker])
        batch = [Record(row.id, row.rev, END, keep=3600.0, took=0.25) for row in rows]
        kept = None if places is None else encode([{"lane": self.lane, "pool": 0, "room": places}])
        outcomes = encode_records(batch).decode()
        found = self.run(
            self.stage.run("committing/end", worker=worker, outcomes=outcomes, pools=kept, most=1000, report=False)
        )
        (done,) = (row for row in found if row[0] == "done")
        assert sorted(msgspec.json.decode(done[1])) == [[record.id, record.rev] for record in batch]
        for row, record in zip(rows, batch, strict=True):
            self.apply(row, record)
        freed = {row.gate for row in rows if row.gate is not None}
        came = self.model.looked(self.dump(), freed, locked)
        direct = [row for row in came if row.status == Status.EXECUTING]
        assert sorted(row[6] for row in found if row[0] == "claim") == sorted(row.id for row in direct)
        assert all(row.worker == worker for row in direct)
        assert len(direct) == min(places or 0, sum(not row.crashes for row in came))

    def send(
        self, model: LimitsModel, worker: int, batch: list[Record], *, look: bool, on: Connection | None = None
    ) -> list[str]:
        """Commits as the flusher does; the lines that came free."""
        held = [model.rows[record.id] for record in batch]
        freed = sorted({row.gate for row, one in zip(held, batch, strict=True) if row.gate and _frees(one)})
        done = self.run(
            self.stage.run(
                "committing/commit",
                on=on,
                worker=worker,
                outcomes=encode_records(batch).decode(),
                first=encode([record.id for record in batch if record.op == WAIT]),
                wake=[],
            )
        )
        assert {row[0] for row in done if row[1] >= 0} == {row.id for row in held}
        for row, record in zip(held, batch, strict=True):
            self.apply(row, record)
        if freed and not look:  # as a look does that finds the lines locked
            self.ask("INSERT INTO {schema}.knocks (line) SELECT unnest(%s::text[])", freed)
        return freed

    def apply(self, row: Row, record: Record) -> None:
        row.rev += 1
        if record.op == END:
            row.status, row.was_parked = Status(record.kind + 3), False
            return
        row.crashes = 0
        if record.limits:
            row.limits(record.gate, record.rate, record.weight)
        if record.op == ON:
            return
        row.due()
        if record.op == WAIT:
            sent = self.inbox(row)
            row.status = row.status if sent else Status.AWAITING_SIGNAL
        elif record.delay:
            row.status = Status.SCHEDULED

    def inbox(self, row: Row) -> bool:
        """Whether a signal is there that no step has been handed."""
        return bool(self.ask("SELECT FROM {schema}.signals WHERE instance_id = %s AND status = 0", row.id))

    @precondition(lambda self: self.executing())
    @rule(data=st.data(), how=st.sampled_from(["release", "postpone"]))
    def give_back(self, data: st.DataObject, how: str) -> None:
        row = self.some(data, self.executing(), 1)[0]
        claims = encode([{"id": row.id, "rev": row.rev}])
        more = {"seconds": FAR} if how == "postpone" else {}
        self.run(self.stage.run(f"claiming/{how}", worker=row.worker, claims=claims, **more))
        row.worker, row.rev = None, row.rev + 1
        row.status = Status.SCHEDULED if how == "postpone" else Status.RUNNABLE

    @precondition(lambda self: self.executing())
    @rule(worker=st.sampled_from([1, 2]), again=st.booleans())
    def die(self, worker: int, again: bool) -> None:
        """R23: what it held comes back; for the second time after a while, and without its slot."""
        if again:
            self.ask("UPDATE {schema}.instances SET crashes = 1 WHERE status = 2 AND worker = %s", worker)
            for row in self.executing(worker):
                row.crashes = 1
        self.ask("DELETE FROM {schema}.workers WHERE id = %s", worker)
        back = self.executing(worker)
        assert self.run(self.stage.reap(worker=0))[0] == len(back)
        self.run(self.stage.register(worker, seen=-3600.0))
        for row in back:
            second, row.rev, row.crashes = row.crashes, row.rev + 1, row.crashes + 1
            row.due()
            row.status = Status.SCHEDULED if second else row.status
            if second:
                self.ask(
                    "UPDATE {schema}.instances SET due_at = {clock} + interval '1 hour' WHERE id = %s", row.id
                )  # else chance decides

    @precondition(lambda self: self.model.live())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        rows = self.some(data, self.model.live(), 2)
        assert self.run(self.stage.cancel(*(row.id for row in rows))) == [row.id for row in rows]
        self.cancelled(rows)

    def cancelled(self, rows: list[Row]) -> None:
        for row in rows:
            row.was_parked = row.status == Status.AWAITING_SIGNAL
            row.status, row.rev, row.worker = Status.CANCELLED, row.rev + 1, None

    # Buckets --------------------------------------------------------------------------------------

    @rule(line=st.sampled_from(["rapi", "rten\x1fa", "rten\x1fb"]), tokens=st.integers(1, 5))
    def refill(self, line: str, tokens: int) -> None:
        self.ask(
            "UPDATE {schema}.lines SET filled_at = filled_at - make_interval(secs => %s), "
            "wake_at = wake_at - make_interval(secs => %s) WHERE line = %s",
            tokens * PER / AMOUNT, tokens * PER / AMOUNT, line,
        )  # fmt: skip
        self.model.refill(line, tokens)

    @rule()
    def forget(self) -> None:
        self.ask("UPDATE {schema}.lines SET made_at = made_at - interval '1 hour'")
        self.run(self.stage.run("limiting/forget", after="", batch=100))
        left = set(self.dump().lines)
        for line, bucket in self.model.buckets.items():
            if line not in left and bucket.tokens is not None:
                assert bucket.tokens > bucket.burst - 0.05, f"{line} was forgotten with {bucket.tokens} tokens"
                assert not self.model.drawn(line)
                bucket.tokens, bucket.allowance = None, bucket.burst

    # Two at once ----------------------------------------------------------------------------------

    @rule(data=st.data(), keep=st.booleans(), given=st.one_of(st.none(), lines), places=st.sampled_from([None, 2]))
    def beside(self, data: st.DataObject, keep: bool, given: list[str] | None, places: int | None) -> None:
        """A look while another transaction is open, which then commits or does not."""
        self.soon()
        theirs = deepcopy(self.model)
        before = deepcopy(self.model)
        self.ask("BEGIN", on=self.other)
        self.open = True
        kinds: list[Callable[[st.DataObject, LimitsModel], tuple[set[int], set[str]]]]
        kinds = [self.held_lines, self.held_rows, self.coming, self.looking]
        if self.executing():
            kinds += [self.ending, self.ending]
        locked, held = data.draw(st.sampled_from(kinds))(data, theirs)
        if any(row.id not in locked for row in self.executing()) and data.draw(st.booleans()):
            if data.draw(st.booleans()):
                self.end_some(data, places, locked)
            else:
                self.commit_some(data, True, places, locked, held)
        else:
            self.admit(self.model, given, places, locked=locked, held=held)
        self.ask("COMMIT" if keep else "ROLLBACK", on=self.other)
        self.open = False
        if keep:
            self.merge(before, theirs)

    def merge(self, before: LimitsModel, theirs: LimitsModel) -> None:
        for id_, row in theirs.rows.items():
            if row != before.rows.get(id_):
                assert self.model.rows.get(id_) == before.rows.get(id_), "both have changed it"
                self.model.rows[id_] = row
        for line, bucket in theirs.buckets.items():
            if bucket != before.buckets.get(line):
                self.model.buckets[line] = bucket

    def held_lines(self, data: st.DataObject, theirs: LimitsModel) -> tuple[set[int], set[str]]:
        rows = self.ask(
            "SELECT line FROM {schema}.lines WHERE line = ANY (%s) FOR UPDATE", data.draw(lines), on=self.other
        )
        return set(), {row[0] for row in rows}

    def held_rows(self, data: st.DataObject, theirs: LimitsModel) -> tuple[set[int], set[str]]:
        ids = {row.id for row in self.some(data, self.model.live(), 3)}
        self.run(self.stage.cancel(*ids, on=self.other))
        self.cancelled([theirs.rows[id_] for id_ in ids])
        return ids, set()

    def coming(self, data: st.DataObject, theirs: LimitsModel) -> tuple[set[int], set[str]]:
        self.come(theirs, data.draw(st.lists(bundles, min_size=1, max_size=3)), False, on=self.other)
        return set(), set()

    def looking(self, data: st.DataObject, theirs: LimitsModel) -> tuple[set[int], set[str]]:
        known = set(self.dump().lines)  # a line that is made here would be waited for
        given = [line for line in data.draw(lines) if line in known]
        return set(), looked_at(self.admit(theirs, given, on=self.other).lines) if given else set()

    def ending(self, data: st.DataObject, theirs: LimitsModel) -> tuple[set[int], set[str]]:
        row = theirs.rows[self.some(data, self.executing(), 1)[0].id]
        assert row.worker is not None
        freed = self.send(theirs, row.worker, [outcome(data, row)], look=True, on=self.other)
        known = set(self.dump().lines)
        looked = looked_at(self.admit(theirs, freed, on=self.other).lines) if freed and known >= set(freed) else set()
        return {row.id}, looked

    # What always holds ----------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        dump = self.dump()
        self.model.equal(dump)
        nothing_forgotten(self.model, dump)

    @rule()
    def comes_to_rest(self) -> None:
        for _ in range(100):
            self.soon()
            self.admit(self.model, None)
            dump = self.dump()
            if not dump.knocks and not any(line.wake is not None and line.wake < NEAR for line in dump.lines.values()):
                break
        else:
            raise AssertionError("it never comes to rest")
        self.holds()
        rest(self.model, dump)

    def teardown(self) -> None:
        """Everything that is live comes to its end."""
        for _ in range(60):
            if not self.model.live():
                return
            for line in list(self.model.buckets):
                self.refill(line, 5)
            self.comes_to_rest()
            self.onwards()
        raise AssertionError(f"never ends: {self.model.live()}")

    def onwards(self) -> None:
        for row in self.model.live(Status.AWAITING_SIGNAL):
            self.run(self.stage.send(row.id))
            row.due()
        late = self.model.live(Status.SCHEDULED)
        self.ask("UPDATE {schema}.instances SET due_at = {clock} WHERE id = ANY (%s)", [row.id for row in late])
        self.run(self.stage.run("timing/promote", batch=100))
        for row in late:
            row.due()
        self.claim(1, 100)
        for worker in (1, 2):
            ends = [Record(row.id, row.rev, END, keep=3600.0, took=0.25) for row in self.executing(worker)]
            self.send(self.model, worker, sorted(ends, key=lambda one: one.id), look=False)


@pytest.mark.timeout(0 if EXAMPLES > 100 else 300)
def test_limits_hold_whatever_happens(database_url: str, schema: str) -> None:
    """R17, R21, R22, R23, R24."""

    async def connected() -> tuple[Stage, Connection]:
        await Engine(database_url, schema=schema, name=schema).migrate()
        one, two = [await open_connection(database_url, "test") for _ in range(2)]
        for connection in (one, two):
            await set_up(connection, steady=True)
        stage = Stage(schema, lambda: open_connection(database_url, "test"), one)
        Limited.lane = await stage.lane()
        return stage, two

    with asyncio.Runner() as runner:
        Limited.runner = runner
        Limited.stage, Limited.other = runner.run(connected())
        try:
            run_state_machine_as_test(
                Limited,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    database=None,
                    print_blob=True,
                    report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(Limited.stage.main.close())
            runner.run(Limited.other.close())
