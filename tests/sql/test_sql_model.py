"""Waiting, against a model: whatever happens in whatever order, the tables hold what plain Python says they should.

Hypothesis draws the order of inserts, claims, outcomes, deaths, signals, deadlines, cancels, retries and prunes, with
stale outcomes in between. ``GEN_DURABLE_MODEL_EXAMPLES`` sets how many orders are tried.
"""

from __future__ import annotations

import asyncio
import os
from copy import deepcopy
from typing import Any

import msgspec
import psycopg
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
from sql_stage import Stage, encode
from waiting_draws import FAR, KEEP, dedups, drawn, keys, later, names, scopes, senders
from waiting_model import Instance, Letter, Model
from waiting_truths import equal, joins, keys_and_places, nothing_stranded, signals
from waiting_wire import Claim, KeptPlace, Wire

from gen_durable import Engine
from gen_durable._runtime.record import BACK, END, JOIN, ON, WAIT, Record, reason_json
from gen_durable._store.connection import open_connection, set_up
from gen_durable._store.inserting import NewInstance, insert_all, replace_or_insert
from gen_durable._store.signalling import NewSignal, deliver, deliver_or_insert
from gen_durable._store.steering import bring_back, cancel_all, cancel_children
from gen_durable.errors import DuplicateInstance
from gen_durable.status import Status, TransitionKind

EXAMPLES = int(os.environ.get("GEN_DURABLE_MODEL_EXAMPLES", "25"))
STEPS = 45


class Waiting(RuleBasedStateMachine):
    wire: Wire  # set by the test
    lane: int

    def __init__(self) -> None:
        super().__init__()
        self.wire.clear()
        self.model = Model()
        self.claims: list[Claim] = []  # that a worker believes to hold
        self.old: list[Claim] = []  # under which outcomes were sent already
        self.sent: dict[int, int] = {}  # accepted signals, by number: their instance
        self.consumed: set[int] = set()  # by committed outcomes
        self.revs: dict[int, int] = {}
        self.numbers = 0

    @initialize(rows=st.lists(st.tuples(keys, scopes, st.just(False)), min_size=1, max_size=3))
    def start(self, rows: list[tuple[str | None, int | None, bool]]) -> None:
        for worker in (1, 2):
            self.register(worker)
        self.insert(rows, together=False)

    def register(self, worker: int) -> None:
        self.wire.register(worker)
        self.model.workers.add(worker)

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def row(self, key: str | None, scope: int | None, delayed: bool = False) -> NewInstance:
        delay = FAR if delayed else None
        return NewInstance(self.lane, "one", msgspec.Raw(b"{}"), key=key, scope=scope if key else None, delay=delay)

    # Inserts --------------------------------------------------------------------------------------

    @rule(rows=st.lists(st.tuples(keys, scopes, later), min_size=1, max_size=3), together=st.booleans())
    def insert(self, rows: list[tuple[str | None, int | None, bool]], together: bool) -> None:
        made = [self.row(*given) for given in rows]
        operation = insert_all(self.wire.sql, made, together=together)
        placed = (self.wire.together if together else self.wire.run)(operation).placed
        for (key, scope, delayed), place in zip(rows, placed, strict=True):
            scope = scope if key else None
            held = self.model.holder(key) if scope != 0 else None
            assert place.duplicate == (held is not None)
            if held is None:
                self.model.inserted(Instance(place.id, key, scope), later=delayed)
            else:
                assert place.id == held.id

    @rule(key=st.sampled_from("kl"), delayed=later)
    def replace(self, key: str, delayed: bool) -> None:
        held, open_to = self.model.holder(key), self.model.replaceable(key)
        place = self.wire.run(replace_or_insert(self.wire.sql, self.row(key, None, delayed)))
        assert place.duplicate == (held is not None and open_to is None)
        if held is None:
            self.model.inserted(Instance(place.id, key), later=delayed)
            return
        assert place.id == held.id
        if open_to is not None:
            status, due = (Status.SCHEDULED, "later") if delayed else (Status.RUNNABLE, "now")
            open_to.status, open_to.due, open_to.scope = status, due, None

    # Workers --------------------------------------------------------------------------------------

    @rule(worker=st.sampled_from([1, 2]), room=st.integers(1, 6))
    def claim(self, worker: int, room: int) -> None:
        ready = self.model.live(Status.RUNNABLE)
        taken = self.wire.claim(worker, self.lane, room)
        assert len(taken) == (min(room, len(ready)) if worker in self.model.workers else 0)
        for claim in taken:
            self.take(claim)

    def take(self, claim: Claim) -> None:
        one = self.model.all[claim.id]
        self.model.claimed(one, claim.worker)
        assert (claim.rev, claim.attempt, claim.crashes) == (one.rev, one.attempt, one.crashes)
        assert claim.handed == [(letter.number, letter.status) for letter in one.matching()]
        self.check_wake(one, claim)
        self.claims.append(claim)

    def check_wake(self, one: Instance, claim: Claim) -> None:
        """R14: a deadline is told from a signal or an open join."""
        timed_out = claim.waits is not None and claim.waits.timed_out
        if one.awaits is not None:
            came = any(letter.status == 0 for letter in one.matching())
            assert timed_out == (not came)
            assert came or one.woken == "deadline"
        else:
            assert timed_out == (one.left is not None and one.woken == "deadline")

    @precondition(lambda self: self.claims)
    @rule(worker=st.sampled_from([1, 2]))
    def crash(self, worker: int) -> None:
        """Its row goes; what it holds in memory may still be sent."""
        self.wire.ask("DELETE FROM {schema}.workers WHERE id = %s", worker)
        self.model.workers.discard(worker)

    @precondition(lambda self: len(self.model.workers) < 2)
    @rule()
    def revive(self) -> None:
        for worker in {1, 2} - self.model.workers:
            self.register(worker)

    @precondition(lambda self: len(self.model.workers) < 2)
    @rule()
    def reap(self) -> None:
        back = self.model.reaped()
        assert self.wire.reap() == len(back)
        for one in back:
            if one.status == Status.SCHEDULED:  # it comes back after a random time: after all that happens here
                self.push_due(one.id, FAR)

    def push_due(self, id_: int, seconds: float) -> None:
        self.wire.ask(
            "UPDATE {schema}.instances SET due_at = {clock} + make_interval(secs => %s) WHERE id = %s", seconds, id_
        )

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        held = self.model.holds(claim.id, claim.rev, claim.worker)
        listed = encode([{"id": claim.id, "rev": claim.rev}])
        ((count, _),) = self.wire.statement("claiming/release", worker=claim.worker, claims=listed)
        assert count == held
        if held:
            self.model.released(self.model.all[claim.id])
        self.done_with(claim)

    def done_with(self, claim: Claim) -> None:
        self.claims.remove(claim)
        self.old = [*self.old[-9:], claim]

    # Outcomes -------------------------------------------------------------------------------------

    @rule(data=st.data(), op=st.sampled_from([ON, BACK, END, END]))
    def commit_one(self, data: st.DataObject, op: int) -> None:
        claim = self.held(data)
        self.commit(claim.worker, [(claim, self.outcome(data, claim, op))])

    @rule(data=st.data())
    def commit_wait(self, data: st.DataObject) -> None:
        claim = self.held(data)
        self.commit(claim.worker, [(claim, self.outcome(data, claim, WAIT))])

    @rule(data=st.data())
    def commit_spawn(self, data: st.DataObject) -> None:
        claim = self.held(data)
        self.commit(claim.worker, [(claim, self.outcome(data, claim, JOIN))])

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """What was woken consumes what it was handed."""
        self.revive()
        self.claim(1, 100)
        woken = [claim for claim in self.good() if claim.handed or (claim.waits and claim.waits.left is not None)]
        claim = data.draw(st.sampled_from(woken)) if woken else self.held(data)
        self.commit(
            claim.worker, [(claim, self.outcome(data, claim, data.draw(st.sampled_from([ON, ON, BACK, WAIT, JOIN]))))]
        )

    def good(self) -> list[Claim]:
        return [claim for claim in self.claims if self.model.holds(claim.id, claim.rev, claim.worker)]

    def held(self, data: st.DataObject) -> Claim:
        """A claim, mostly a good one."""
        if not self.good() or not data.draw(st.integers(0, 3)):
            self.revive()
            if not self.model.live(Status.RUNNABLE):
                self.insert([(None, None, False)], together=False)
            self.claim(data.draw(st.sampled_from([1, 2])), 3)
        return data.draw(st.sampled_from(self.good() if data.draw(st.integers(0, 5)) else self.claims))

    @precondition(lambda self: len(self.claims) > 1)
    @rule(data=st.data())
    def commit_batch(self, data: st.DataObject) -> None:
        """Several outcomes of one worker in one statement; perhaps with one that was sent before."""
        worker = data.draw(st.sampled_from(sorted({claim.worker for claim in self.claims})))
        mine = [claim for claim in self.claims if claim.worker == worker]
        chosen = data.draw(st.lists(st.sampled_from(mine), min_size=1, max_size=4, unique_by=lambda claim: claim.id))
        batch = [
            (claim, self.outcome(data, claim, data.draw(st.sampled_from([ON, BACK, END, WAIT])))) for claim in chosen
        ]
        stale = [claim for claim in self.old if claim.worker == worker]
        if stale and data.draw(st.booleans()):
            claim = data.draw(st.sampled_from(stale))
            batch.append((claim, self.outcome(data, claim, END)))
        self.commit(worker, batch)

    @precondition(lambda self: self.old)
    @rule(data=st.data(), op=st.sampled_from([ON, BACK, END, WAIT, JOIN]))
    def commit_stale(self, data: st.DataObject, op: int) -> None:
        """R4: an outcome under an old claim changes nothing."""
        claim = data.draw(st.sampled_from(self.old))
        assert not self.model.holds(claim.id, claim.rev, claim.worker)
        self.commit(claim.worker, [(claim, self.outcome(data, claim, op))])

    def outcome(self, data: st.DataObject, claim: Claim, op: int) -> Record:
        return drawn(data, claim, op, lambda key: self.row(key, None))

    def commit(self, worker: int, batch: list[tuple[Claim, Record]]) -> None:
        good = {(c.id, c.rev) for c, _ in batch if self.model.holds(c.id, c.rev, worker)}
        before = deepcopy([claim for claim, _ in batch])
        refused = any(self.refused(claim) for claim, _ in batch if (claim.id, claim.rev) in good)
        try:
            committed = self.wire.commit(worker, batch)
        except DuplicateInstance:
            assert refused
            return  # and nothing of it is there: the claim stays
        assert not refused
        assert committed == good
        ends: list[tuple[Instance, int]] = []
        for (claim, record), old in zip(batch, before, strict=True):
            if (claim.id, claim.rev) in good:
                self.apply(claim, record, ends)
            if claim in self.claims and not ((old.id, old.rev) in good and record.op == ON):
                self.claims.remove(claim)
            self.old = [*self.old[-9:], old]
        self.model.finished(ends, speaks=True)

    def refused(self, claim: Claim) -> bool:
        listed = [row.key for row in claim.spawning or () if row.key is not None]
        return len(set(listed)) < len(listed) or any(self.model.holder(key) for key in listed)

    def apply(self, claim: Claim, record: Record, ends: list[tuple[Instance, int]]) -> None:
        one = self.model.all[claim.id]
        handed = [number for number, _ in claim.handed]
        delayed = bool(record.delay)
        if record.signals and record.op != WAIT:
            assert not self.consumed & set(handed), "a signal is consumed twice"
            self.consumed.update(handed)
        if record.op == ON:
            self.model.went_on(one, handed)
            claim.rev, claim.attempt, claim.crashes, claim.handed = claim.rev + 1, 0, 0, []
            if claim.waits is not None:
                claim.waits.progress()
        elif record.op == BACK:
            self.model.went_back(one, record.kind, handed, later=delayed)
        elif record.op == WAIT:
            self.model.awaited(one, list(record.awaits or ()), handed, later=delayed)
        elif record.op == JOIN:
            total = len(claim.spawning or ())
            join = (record.children or 0, total, record.spare is not None)
            self.model.spawned(one, join, handed, later=delayed, rest=record.rest)
            fresh = self.wire.ask(
                "SELECT id, key FROM {schema}.instances WHERE parent_id = %s AND parent_spawn = %s ORDER BY id",
                one.id,
                one.spawn,
            )
            assert [key for _, key in fresh] == [row.key for row in claim.spawning or ()]
            for id_, key in fresh:
                self.model.inserted(Instance(id_, key, parent=one.id, parent_spawn=one.spawn))
        else:
            ends.append((one, record.kind))

    # Signals, deadlines ---------------------------------------------------------------------------

    @rule(data=st.data(), name=names, dedup=dedups, worker=senders)
    def signal(self, data: st.DataObject, name: str, dedup: str | None, worker: int | None) -> None:
        awaiting = [one.id for one in self.model.live() if one.awaits]
        live = [one.id for one in self.model.live()]
        choices = [ids for ids in (awaiting, live, [None, *self.model.all]) if ids]
        known = data.draw(st.sampled_from(choices))
        id_ = data.draw(st.sampled_from(known))
        one = self.model.all.get(id_ or 0)
        self.send(-1 if id_ is None else id_, one if one is not None and one.live else None, name, dedup, worker)

    @rule(key=st.sampled_from("kl"), name=names, dedup=dedups, worker=senders)
    def signal_by_key(self, key: str, name: str, dedup: str | None, worker: int | None) -> None:
        self.send(key, self.model.addressed(key), name, dedup, worker)

    @precondition(lambda self: self.consumed_keys())
    @rule(data=st.data())
    def signal_again(self, data: st.DataObject) -> None:
        """R11: also when the first of that dedup_key was consumed."""
        one, letter = data.draw(st.sampled_from(self.consumed_keys()))
        self.send(one.id, one, letter.name, letter.dedup)

    def consumed_keys(self) -> list[tuple[Instance, Letter]]:
        return [(one, letter) for one in self.model.live() for letter in one.inbox if letter.status == 2]

    def send(
        self, target: int | str, one: Instance | None, name: str, dedup: str | None, worker: int | None = None
    ) -> None:
        """With a worker, from its process: what the signal wakes is the worker's claim."""
        number, place = self.number(), None if worker is None else KeptPlace(worker, self.lane)
        delivery = self.wire.run(deliver(self.wire.sql, target, NewSignal(name, str(number), dedup), place=place))
        claims = [] if place is None else place.claims
        if one is None:
            assert delivery is None
            assert not claims
            return
        fresh, woken = self.model.signal(one, Letter(number, name, dedup))
        assert len(claims) == (woken and worker in self.model.workers and not one.crashes)
        assert (delivery.id, delivery.fresh, delivery.woken) == (one.id, fresh, woken and not claims)
        for claim in claims:
            self.take(claim)
        if fresh:
            self.sent[number] = one.id

    @rule(key=st.sampled_from("kl"), name=names, dedup=dedups, delayed=later)
    def signal_or_insert(self, key: str, name: str, dedup: str | None, delayed: bool) -> None:
        number, signal = self.number(), NewSignal(name, "", dedup)
        one, held = self.model.addressed(key), self.model.holder(key)
        operation = deliver_or_insert(self.wire.sql, self.row(key, None, delayed), signal._replace(payload=str(number)))
        try:
            delivery = self.wire.together(operation)
        except DuplicateInstance as error:
            self.taken(error, held)
            assert one is None
            return
        if one is None:
            assert held is None
            one = Instance(delivery.id, key)
            self.model.inserted(one, later=delayed)
        assert delivery.id == one.id
        fresh, _ = self.model.signal(one, Letter(number, name, dedup))
        assert delivery.fresh == fresh
        if fresh:
            self.sent[number] = one.id

    def taken(self, error: DuplicateInstance, held: Instance | None) -> None:
        assert held is not None
        assert error.existing_id == held.id

    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        waiting = self.model.live(Status.SCHEDULED, Status.AWAITING_SIGNAL, Status.AWAITING_CHILDREN)
        some = [one for one in waiting if one.due == "later"]
        due = data.draw(st.lists(st.sampled_from(some), unique_by=lambda one: one.id)) if some else []
        for one in due:
            self.push_due(one.id, -1.0)
        ((count, *_),) = self.wire.statement("timing/promote", batch=100)
        assert count == len(due)
        for one in due:
            self.model.promoted(one)

    # Steering and pruning -------------------------------------------------------------------------

    @precondition(lambda self: self.model.all)
    @rule(data=st.data(), cascade=st.booleans())
    def cancel(self, data: st.DataObject, cascade: bool) -> None:
        id_ = data.draw(st.sampled_from(list(self.model.all)))
        reason = encode(reason_json("Cancelled", "enough")).encode()
        done = self.wire.together(cancel_all(self.wire.sql, [id_], reason, keep=True, cascade=cascade))
        assert set(done.ids) == self.model.cancelled([id_], cascade=cascade)

    @precondition(lambda self: any(claim.waits and claim.waits.rest for claim in self.claims))
    @rule(data=st.data())
    def cancel_rest(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from([claim for claim in self.claims if claim.waits and claim.waits.rest]))
        assert claim.waits is not None
        assert claim.waits.spawn is not None
        reason = encode(reason_json("Cancelled", "enough")).encode()
        done = self.wire.run(cancel_children(self.wire.sql, claim.id, claim.waits.spawn, reason, keep=True))
        rest = self.model.children([claim.id], claim.waits.spawn)
        assert set(done.ids) == self.model.cancelled(rest, cascade=False)

    @precondition(lambda self: self.model.ended())
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        self.bring_back(data.draw(st.sampled_from(self.model.ended())))

    @precondition(lambda self: self.counted(live=False))
    @rule(data=st.data())
    def retry_child(self, data: st.DataObject) -> None:
        """One that a join has counted already."""
        self.bring_back(data.draw(st.sampled_from(self.counted(live=False))))

    @precondition(lambda self: self.counted(live=True))
    @rule(data=st.data(), kind=st.sampled_from([TransitionKind.DONE, TransitionKind.FAILED]))
    def end_child(self, data: st.DataObject, kind: TransitionKind) -> None:
        """One that a join waits for, if it is ready."""
        self.revive()
        self.claim(1, 100)
        some = {one.id for one in self.counted(live=True)}
        ready = [claim for claim in self.claims if claim.id in some and claim.worker == 1]
        if ready:
            claim = data.draw(st.sampled_from(ready))
            error = None if kind == TransitionKind.DONE else reason_json("Stop", "so it goes")
            end = Record(claim.id, claim.rev, END, keep=KEEP, took=0.25, tried=claim.attempt, kind=kind, error=error)
            self.commit(1, [(claim, end)])

    def counted(self, *, live: bool) -> list[Instance]:
        """Children whose parent is parked for them."""
        kin = [one for one in self.model.all.values() if one.live == live and one.parent is not None]
        parents = [(one, self.model.waits_for(one)) for one in kin]
        return [one for one, parent in parents if parent and parent.status == Status.AWAITING_CHILDREN]

    def bring_back(self, one: Instance) -> None:
        try:
            back = self.wire.run(bring_back(self.wire.sql, one.id))
        except psycopg.errors.UniqueViolation:
            assert not self.model.can_retry(one)
            return
        assert back == (one.status != Status.DONE)
        if back:
            assert self.model.can_retry(one)
            self.model.retried(one)

    @rule(data=st.data())
    def prune(self, data: st.DataObject) -> None:
        ended = self.model.ended()
        gone = data.draw(st.lists(st.sampled_from(ended), unique_by=lambda one: one.id)) if ended else []
        for one in gone:
            one.expired = True
            self.wire.ask("UPDATE {schema}.finished SET expires_at = {clock} - interval '1 s' WHERE id = %s", one.id)
            if one.stub:
                self.push_due(one.id, -1.0)
        self.wire.statement("pruning/sweep", batch=100)
        self.model.swept()

    # What always holds ----------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        tables = self.wire.tables()
        equal(tables, self.model)
        keys_and_places(tables)
        joins(tables, self.model)
        signals(tables, self.sent, self.consumed, self.model.cleared)
        nothing_stranded(tables)
        revs = {id_: row.rev for id_, row in tables.live.items()} | {id_: row[1] for id_, row in tables.ended.items()}
        assert all(rev >= self.revs.get(id_, 0) for id_, rev in revs.items()), "a rev went back"
        self.revs |= revs

    def teardown(self) -> None:
        """Everything that is live can come to its end, and the history tells each transition once."""
        for _ in range(20):
            if not self.model.live():
                break
            self.onwards()
            self.holds()
        assert not self.model.live(), "something never ends"
        told = {(one.id, seq, kind) for one in self.model.all.values() for seq, kind in one.history}
        assert self.wire.history() == told

    def onwards(self) -> None:
        """One round: the dead are reaped, deadlines pass, signals come, and what is ready ends."""
        for worker in (1, 2):
            self.crash(worker)
        self.reap()
        self.register(1)
        for one in self.model.live(Status.AWAITING_SIGNAL):
            assert one.awaits is not None
            self.send(one.id, one, one.awaits[0], None)
        timed = [one for one in self.model.live(Status.SCHEDULED, Status.AWAITING_CHILDREN) if one.due == "later"]
        for one in timed:
            self.push_due(one.id, -1.0)
            self.model.promoted(one)
        self.wire.statement("timing/promote", batch=100)
        self.claims.clear()
        self.claim(1, 100)
        ends = [Record(claim.id, claim.rev, END, keep=KEEP, took=0.25, tried=claim.attempt) for claim in self.claims]
        self.commit(1, list(zip(self.claims, ends, strict=True)))


@pytest.fixture
def runner() -> Any:
    with asyncio.Runner() as made:
        yield made


@pytest.mark.timeout(0 if EXAMPLES > 100 else 300)
def test_the_tables_hold_what_the_model_says(database_url: str, schema: str, runner: asyncio.Runner) -> None:
    """R3, R4, R10, R11, R12, R13, R15, R16."""

    async def connected() -> Stage:
        await Engine(database_url, schema=schema, name=schema).migrate()
        connection = await open_connection(database_url, "test")
        await set_up(connection, steady=True)
        stage = Stage(schema, lambda: open_connection(database_url, "test"), connection)
        Waiting.lane = await stage.lane(retention=KEEP)
        return stage

    stage = runner.run(connected())
    Waiting.wire = Wire(runner, stage, stage.main)
    try:
        run_state_machine_as_test(
            Waiting,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        runner.run(stage.main.close())
