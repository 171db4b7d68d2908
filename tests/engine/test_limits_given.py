"""What every way of inserting takes over of limits: from the machine, from the call."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from engine_support import Build, failure

from gen_durable import BulkItem, Context, Done, Engine, Machine, Next, Rate, Schedule, Spawn, child, job, step
from gen_durable._store.inserting import NewInstance
from gen_durable.errors import InvalidArgument, InvalidState

RATES = {"crm": Rate(1000)}


class Sync(Machine, concurrency_key=lambda self: ("tenant", self.tenant)):
    tenant: int

    @step(rate_limit="crm", weight=lambda self: self.tenant)
    async def only(self, ctx: Context) -> Done:
        return Done(self.tenant)


class Plain(Machine):
    @step
    async def only(self, ctx: Context) -> Done:
        return Done()


class Parent(Machine):
    bad: bool = False

    @step
    async def start(self, ctx: Context) -> Spawn | Next:
        if self.bad:
            return Next(self.join, rate_limit=("crm", None))  # type: ignore[arg-type]
        return Spawn([Sync(tenant=3), child(Sync(tenant=4), concurrency_key="x", weight=1)], self.join)

    @step
    async def join(self, ctx: Context) -> Done:
        return Done([found.result for found in ctx.children])


def rows_of(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the rows of later inserts are held to."""
    seen: list[tuple[Any, ...]] = []
    check = engine._check

    def look(item: BulkItem) -> Any:
        spec, lane, row = check(item)
        seen.append(held_to(row))
        return spec, lane, row

    monkeypatch.setattr(engine, "_check", look)
    return seen


def held_to(row: NewInstance) -> tuple[Any, ...]:
    return row.own_gate, row.gate, row.rate, row.weight


async def test_every_way_of_inserting_takes_limits(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 10: ``insert`` and its kin evaluate what is declared and take options; schedules have no options."""
    options: dict[str, Any] = {"concurrency_key": None, "rate_limit": ("crm", 1), "weight": 5}
    declared, given = ("ctenant\x1f2", "ctenant\x1f2", "rcrm", 2), (None, None, "rcrm\x1f1", 5)
    async with build(Sync, rate_limits=RATES) as engine:
        seen = rows_of(engine, monkeypatch)
        await engine.insert(Sync(tenant=2))
        await engine.insert(Sync(tenant=2), **options)
        await engine.insert(Sync(tenant=2), key="k", on_conflict="replace", delay=60, **options)
        await engine.insert_many([Sync(tenant=2), BulkItem(Sync(tenant=2), **options)])
        await engine.signal_or_insert(Sync(tenant=2), key="a", name="s")
        await engine.signal_or_insert(Sync(tenant=2), key="b", name="s", **options)
        await engine._declare(Schedule("s", "@yearly", Sync(tenant=2)))
    assert seen == [declared, given, given, declared, given, declared, given, declared]


async def test_children_are_held_to_what_they_declare_or_were_given(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 6: ``child`` means what ``insert`` means."""
    async with build(Sync, Parent, rate_limits=RATES) as engine:
        seen = rows_of(engine, monkeypatch)
        parent = await engine.insert(Parent())
        assert await parent.result(timeout=15) == [3, 4]
    assert seen[1:] == [("ctenant\x1f3", "ctenant\x1f3", "rcrm", 3), ("cx", "cx", "rcrm", None)]


async def test_a_wrong_limit_on_next_is_an_error_of_the_step(build: Build) -> None:
    """R8, R24: the message says what it was."""
    async with build(Sync, Parent, rate_limits=RATES) as engine:
        error = await failure(await engine.insert(Parent(bad=True)))
    assert "Next: rate_limit: the partition must be a string or an int, not None" in error["message"]


async def test_an_unknown_limit_writes_nothing(build: Build) -> None:
    """R24: all items of a call are checked before the first is written."""
    async with build(Plain, Sync, rate_limits=RATES) as engine:
        with pytest.raises(InvalidArgument, match=r"there is no rate limit 'fax' \(known: crm\)"):
            await engine.insert_many([Plain(), BulkItem(Plain(), rate_limit="fax")])
        assert (await engine.list(machine="Plain")).items == []


async def test_no_places_are_kept_for_rows_with_limits(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """R21: such a row is never born as a claim, and none beside it in the same call."""
    async with build(Plain, Sync, rate_limits=RATES) as engine:
        asked: list[Counter[int]] = []
        expect = engine._local.expect
        monkeypatch.setattr(engine._local, "expect", lambda counts: (asked.append(counts), expect(counts))[1])
        await engine.insert_many([Plain(), BulkItem(Plain(), concurrency_key="x")])
        await engine.insert(Plain(), rate_limit="crm")
        assert asked == []
        await engine.insert(Plain())
        assert [sum(counts.values()) for counts in asked] == [1]


# What a row is held to ------------------------------------------------------------------------------


class Late(Machine, concurrency_key=lambda self: self.key):
    key: Any = None
    rate: Any = None
    weight: Any = None

    @step(rate_limit=lambda self: self.rate, weight=lambda self: self.weight)
    async def ship(self, ctx: Context) -> Done: ...


class Transfer(Machine, concurrency_key=lambda self: ("account", self.account)):
    account: int

    @step
    async def free(self, ctx: Context) -> Done: ...


@job(concurrency_key=lambda self: self.to, rate_limit=("mail", "eu"), weight=3)
async def send(to: str, ctx: Context) -> None: ...


ENGINE = Engine(machines=[Plain, Transfer, Late, send], rate_limits={"crm": Rate(5), "mail": Rate(9)}, name="limits")


def checked(instance: Machine, **options: Any) -> NewInstance:
    """The row that an insert would write."""
    return ENGINE._check(BulkItem(instance, **options))[2]


def test_a_row_has_its_own_key_and_its_first_step_s_limits() -> None:
    """Section 10: evaluated at the insert, overridden by its options."""
    assert held_to(checked(Plain())) == (None, None, None, None)
    assert held_to(checked(Plain(), concurrency_key="x")) == ("cx", "cx", None, None)
    assert held_to(checked(Plain(), rate_limit=("crm", 1), weight=2)) == (None, None, "rcrm\x1f1", 2)
    assert held_to(checked(Transfer(account=7))) == ("caccount\x1f7", "caccount\x1f7", None, None)
    assert held_to(checked(Transfer(account=7), concurrency_key=None)) == (None, None, None, None)
    assert held_to(checked(send.bind("a"))) == ("ca", "ca", "rmail\x1feu", 3)
    assert held_to(checked(send.bind("a"), concurrency_key="b", rate_limit="crm", weight=None)) == (
        "cb", "cb", "rcrm", None,
    )  # fmt: skip
    assert held_to(checked(send.bind("a"), rate_limit=None)) == ("ca", "ca", None, None)


def test_a_first_step_s_own_key_beats_that_of_the_instance() -> None:
    """Section 10: the option is the instance's own key, for the steps that declare none."""

    class First(Machine, concurrency_key="own"):
        @step(concurrency_key="step")
        async def one(self, ctx: Context) -> Done: ...

    engine = Engine(machines=[First], name="first")
    rows = [engine._check(BulkItem(First(), **given))[2] for given in ({}, {"concurrency_key": "x"})]
    assert [held_to(row) for row in rows] == [("cown", "cstep", None, None), ("cx", "cstep", None, None)]


BAD_INSERTS: list[tuple[Machine, dict[str, Any], str]] = [
    (Plain(), {"concurrency_key": 7}, "^Plain: concurrency_key must be a name"),
    (Plain(), {"concurrency_key": lambda self: "x"}, "^Plain: concurrency_key must be a name"),
    (Plain(), {"rate_limit": ("a", None)}, r"^Plain\.only: rate_limit: the partition must be"),
    (Plain(), {"rate_limit": "x"}, r"there is no rate limit 'x' \(known: crm, mail\)"),
    (Plain(), {"rate_limit": "crm", "weight": 6}, "weight=6 is more than the rate limit 'crm' ever holds"),
    (Plain(), {"rate_limit": "crm", "weight": 0}, r"^Plain\.only: weight must be a whole number"),
    (Plain(), {"weight": 2}, r"^Plain\.only: weight=2 without a rate limit"),
    (Late(rate="nope"), {}, "there is no rate limit 'nope'"),
    (Late(rate="crm", weight=7), {}, "weight=7 is more than"),
    (Late(key=7), {}, "^Late: concurrency_key must be a name"),
]


@pytest.mark.parametrize(("instance", "options", "says"), BAD_INSERTS, ids=range(len(BAD_INSERTS)))
def test_an_insert_refuses_wrong_limits(instance: Machine, options: dict[str, Any], says: str) -> None:
    """R24: unknown names, weights over the burst and wrong keys, before anything is written."""
    with pytest.raises(InvalidArgument, match=says):
        checked(instance, **options)


def test_functions_see_the_validated_instance() -> None:
    """What is asked has the state that is stored, which is checked first; nothing that the function does is kept."""
    seen: list[Any] = []

    def look(self: Any) -> str:
        seen.append((type(self), vars(self).copy()))
        self.tags.append("changed")
        return "x"

    class Looked(Machine, concurrency_key=look):
        size: float = 1
        tags: list[str] = []

        @step
        async def one(self, ctx: Context) -> Done: ...

    engine = Engine(machines=[Looked], name="looked")
    instance = Looked()
    instance.size, instance.other = 3, "not a field"
    row = engine._check(BulkItem(instance))[2]
    assert seen == [(Looked, {"size": 3.0, "tags": ["changed"]})]
    assert instance.tags == []
    assert bytes(row.state) == b'{"size":3,"tags":[]}'
    instance.size = "seven"  # type: ignore[assignment]
    with pytest.raises(InvalidState):
        engine._check(BulkItem(instance))
    assert len(seen) == 1
