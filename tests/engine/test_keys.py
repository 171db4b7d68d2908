"""R16: at most one live instance has a key, whoever races; and ``insert_many``."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from engine_support import Build, Sql

from gen_durable import BulkItem, Context, Done, Machine, Next, job, step
from gen_durable.errors import DuplicateInstance, InstanceFailed, InvalidArgument, InvalidState, NoSuchInstance


@job
async def keyed(n: int = 0) -> int:
    return n


async def test_a_key_that_is_taken_raises_with_the_id_that_holds_it(build: Build) -> None:
    """R16: ``DuplicateInstance`` carries key and existing id; nothing is inserted; the key addresses the instance."""
    async with build(keyed, queues={}) as engine:
        first = await engine.insert(keyed.bind(n=1), key="order:1")
        with pytest.raises(DuplicateInstance, match=f"'order:1' is taken by instance {first.id}") as caught:
            await engine.insert(keyed.bind(n=2), key="order:1")
        assert (caught.value.key, caught.value.existing_id) == ("order:1", first.id)
        other = await engine.insert(keyed.bind(n=3), key="order:2")
        assert (first.key, other.id != first.id) == ("order:1", True)
        assert (await engine.get("order:1")).state == {"n": 1}
        assert len((await engine.list()).items) == 2


async def test_on_conflict_existing_gives_the_handle_of_the_holder(build: Build) -> None:
    """R16: ``on_conflict="existing"``: the same instance, unchanged, and its result."""
    async with build(keyed, queues={}) as web:
        first = await web.insert(keyed.bind(n=1), key="k", on_conflict="existing")
        second = await web.insert(keyed.bind(n=2), key="k", on_conflict="existing", priority=5)
        assert second == first
        assert (await second.get()).state == {"n": 1}
        assert (await second.get()).priority == 0
        async with build(keyed):
            assert await second.result(timeout=10) == 1


async def test_a_key_is_held_through_every_wait_and_free_after_the_end(build: Build) -> None:
    """R16: the default scope is every non-terminal status; then the key is free, and addresses the newest."""
    go = asyncio.Event()

    class Waits(Machine):
        how: str

        @step
        async def a(self, ctx: Context) -> Next:
            return Next(self.b, delay=0.05)

        @step
        async def b(self, ctx: Context) -> Done:
            await go.wait()
            if self.how == "fail":
                raise OSError("over")
            return Done(self.how)

    async with build(Waits) as engine:
        for how in ("first", "fail", "third"):
            handle = await engine.insert(Waits(how=how), key="the key")
            for _ in range(5):
                with pytest.raises(DuplicateInstance):
                    await engine.insert(Waits(how="no"), key="the key")
            go.set()
            assert (await _end(engine, handle.id)) in ("done", "failed")
            go.clear()
            assert (await engine.get("the key")).id == handle.id
        last = await engine.get("the key")
        assert (last.result, last.status) == ("third", "done")
        handle = await engine.insert(Waits(how="live"), key="the key")
        assert (await engine.get("the key")).id == handle.id  # the live one comes first
        go.set()
        assert await engine.result("the key", timeout=10) == "live"


async def _end(engine: Any, target: int) -> str:
    with contextlib.suppress(InstanceFailed):
        await engine.result(target, timeout=10)
    return str((await engine.get(target)).status)


async def test_insert_many_reports_for_each_item_in_the_order_given(build: Build) -> None:
    """Section 7: per item whether it was inserted or a duplicate; options of their own; one bad item stops all."""
    at = datetime.now(UTC) + timedelta(hours=1)
    async with build(keyed, queues={"default": 1, "other": 1}) as engine:
        await engine.pause_queue("default")
        taken = await engine.insert(keyed.bind(n=0), key="b")
        report = await engine.insert_many(
            [
                BulkItem(keyed.bind(n=1), key="z", priority=3, delay=timedelta(hours=2)),
                keyed.bind(n=2),
                BulkItem(keyed.bind(n=3), key="b"),
                BulkItem(keyed.bind(n=4), key="a", queue="other", at=at),
                BulkItem(keyed.bind(n=5), key="z"),
                BulkItem(keyed.bind(n=6)),
            ]
        )
        assert [item.duplicate for item in report] == [False, False, True, False, True, False]
        assert [item.id for item in report] == [item.handle.id for item in report]
        assert report[2].id == taken.id
        assert report[4].id == report[0].id
        found = [await item.handle.get() for item in report]
        assert [one.state["n"] for one in found] == [1, 2, 0, 4, 1, 6]
        assert [one.key for one in found] == ["z", None, "b", "a", "z", None]
        assert [item.handle.key for item in report] == ["z", None, "b", "a", "z", None]
        assert (found[0].priority, found[3].queue, found[3].due_at) == (3, "other", at)
        assert found[0].due_at is not None
        assert (found[0].due_at - found[0].inserted_at) == timedelta(hours=2)
        assert await engine.insert_many([]) == []
        before = len((await engine.list(limit=1000)).items)
        for bad in (BulkItem(keyed.bind(), key=""), BulkItem(keyed.bind(), delay=-1), keyed, 7):
            with pytest.raises(InvalidArgument):
                await engine.insert_many([keyed.bind(), bad])  # type: ignore[list-item]
        assert len((await engine.list(limit=1000)).items) == before


async def test_a_key_twice_in_one_call_is_one_instance_though_the_first_ends_at_once(build: Build) -> None:
    """R16: an item whose key an earlier item of the call has is a duplicate, though that one has finished by then."""
    async with build(keyed, queues={"default": 20}) as engine:
        for n in range(10):
            report = await engine.insert_many(BulkItem(keyed.bind(n=i), key=f"{n}:{i % 3}") for i in range(30))
            assert [item.duplicate for item in report] == [i >= 3 for i in range(30)]
            assert [item.id for item in report] == [report[i % 3].id for i in range(30)]
            for item in report:
                assert await item.handle.result(timeout=10) in (0, 1, 2)


async def test_a_key_twice_in_one_call_is_told_apart_before_anything_runs(build: Build, sql: Sql) -> None:
    """R16: the same, where every row is gone as soon as its insert commits: nothing is inserted a second time."""
    await sql(
        "CREATE FUNCTION {s}.gone() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN DELETE FROM {s}.instances i WHERE i.id = NEW.id; RETURN NULL; END'"
    )
    await sql(
        "CREATE CONSTRAINT TRIGGER gone AFTER INSERT ON {s}.instances DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION {s}.gone()"
    )
    async with build(keyed, queues={}) as engine:
        report = await engine.insert_many(BulkItem(keyed.bind(n=n), key=f"k{n % 2}") for n in range(6))
    assert [item.duplicate for item in report] == [False, False, True, True, True, True]
    assert [item.id for item in report] == [report[n % 2].id for n in range(6)]


async def test_insert_many_of_thousands_is_some_round_trips(build: Build) -> None:
    """Section 7: any number, in a few round trips; ids in the order given."""
    async with build(keyed, queues={}) as engine:
        report = await engine.insert_many(keyed.bind(n=n) for n in range(4500))
        assert [item.id for item in report] == sorted(item.id for item in report)
        assert not any(item.duplicate for item in report)
        assert (await engine.get(report[4321].id)).state == {"n": 4321}
        counts = await engine.counts()
        assert [(c.status, c.count) for c in counts] == [("runnable", 4500)]


async def test_racing_inserts_of_one_key_make_one_instance(build: Build) -> None:
    """R16: of many tasks on two engines that insert one key, exactly one wins; all others learn its id."""
    async with build(keyed, queues={}) as one, build(keyed, queues={}) as two:
        for turn in range(5):
            answers = await asyncio.gather(
                *((one, two)[i % 2].insert(keyed.bind(n=i), key=f"k{turn}") for i in range(20)),
                return_exceptions=True,
            )
            winners = [a for a in answers if not isinstance(a, BaseException)]
            losers = [a for a in answers if isinstance(a, DuplicateInstance)]
            assert (len(winners), len(losers)) == (1, 19)
            assert {loser.existing_id for loser in losers} == {winners[0].id}


async def test_the_same_keys_in_opposite_orders_never_deadlock(build: Build, sql: Sql) -> None:
    """R16: many callers on two engines insert the same keys in opposite orders: no deadlock, each key once."""
    keys = [f"key {n}" for n in range(1500)]
    shuffled = random.Random(7).sample(keys, len(keys))
    orders = [keys, keys[::-1], shuffled, shuffled[::-1]]
    async with build(keyed, queues={}) as one, build(keyed, queues={}) as two:
        reports = await asyncio.gather(
            *(
                (one, two)[i % 2].insert_many(BulkItem(keyed.bind(n=i), key=key) for key in orders[i % 4])
                for i in range(8)
            )
        )
    ids: dict[str, set[int]] = {}
    fresh: Counter[str] = Counter()
    for report in reports:
        for item in report:
            ids.setdefault(item.handle.key or "", set()).add(item.id)
            fresh[item.handle.key or ""] += not item.duplicate
    assert set(fresh.values()) == {1}
    assert {len(found) for found in ids.values()} == {1}
    assert (await sql("SELECT count(*), count(DISTINCT key) FROM {s}.instances"))[0] == (1500, 1500)


async def test_inserts_race_with_a_worker_that_ends_the_holders(build: Build, sql: Sql) -> None:
    """R16: while instances of a key end all the time, ``existing`` always answers with one that had the key."""
    async with build(keyed, queues={"default": 10}) as engine, build(keyed, queues={}) as web:

        async def again(client: Any) -> list[int]:
            handles = [await client.insert(keyed.bind(), key="hot", on_conflict="existing") for _ in range(25)]
            for handle in handles:
                assert await handle.result(timeout=10) == 0
            return [handle.id for handle in handles]

        found = await asyncio.gather(*(again(client) for client in (engine, web, engine, web)))
    rows = await sql("SELECT id FROM {s}.finished WHERE key = 'hot'")
    assert {row[0] for row in rows} == {id_ for ids in found for id_ in ids}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"key": ""}, "key must not be empty"),
    ({"key": "ä" * 257}, "at most 512 bytes"),
    ({"key": "a\0b"}, "NUL"),
    ({"key": "\ud800"}, "lone surrogate"),
    ({"key": 5}, "key must be a string, not 5"),
    ({"queue": ""}, "queue must not be empty"),
    ({"queue": "nowhere"}, "there is no queue 'nowhere'; known are default"),
    ({"priority": 32768}, "32767"),
    ({"priority": -32769}, "-32768"),
    ({"priority": 1.5}, "priority must be an int"),
    ({"priority": True}, "priority must be an int"),
    ({"delay": -1}, "0 or more"),
    ({"delay": timedelta(seconds=-1)}, "0 or more"),
    ({"delay": float("nan")}, "nan"),
    ({"delay": float("inf")}, "at most 100 years"),
    ({"delay": "5"}, "seconds"),
    ({"at": datetime(2030, 1, 1)}, "has no time zone"),  # noqa: DTZ001
    ({"at": "2030-01-01"}, "aware datetime"),
    ({"at": datetime.max.replace(tzinfo=UTC).astimezone(UTC).replace(tzinfo=None)}, "has no time zone"),
    ({"at": datetime(2030, 1, 1, tzinfo=UTC), "delay": 1}, "give one of them"),
    ({"on_conflict": "ignore"}, "on_conflict='ignore'"),
]


async def test_a_wrong_argument_is_refused_and_nothing_is_written(build: Build, sql: Sql) -> None:
    """Section 14: ``InvalidArgument`` that names the value, at once, with nothing half-written."""
    async with build(keyed, queues={}) as engine:
        for arguments, message in WRONG:
            with pytest.raises(InvalidArgument, match=message):
                await engine.insert(keyed.bind(), **arguments)
    assert await sql("SELECT 1 FROM {s}.instances") == []


async def test_the_limits_themselves_are_accepted(build: Build) -> None:
    """Section 7 and 8: 512 bytes of key, the ends of the priorities, 0 and 100 years of delay."""
    async with build(keyed, queues={}) as engine:
        key = "ä" * 256
        found = await (await engine.insert(keyed.bind(), key=key, priority=-32768)).get()
        assert (found.key, found.priority) == (key, -32768)
        assert (await engine.get(key)).id == found.id
        found = await (await engine.insert(keyed.bind(), priority=32767, delay=0)).get()
        assert (found.priority, found.status) == (32767, "runnable")
        found = await (await engine.insert(keyed.bind(), delay=timedelta(days=36525))).get()
        assert found.due_at is not None
        assert (found.due_at - found.inserted_at) == timedelta(days=36525)


async def test_times_at_the_ends_of_the_calendar(build: Build) -> None:
    """Section 8, ``at=``: any aware datetime from 1900 to 9000; another is refused, not stored."""
    from datetime import timezone

    async with build(keyed, queues={}) as engine:
        odd = timezone(timedelta(hours=5, minutes=53, seconds=28))
        at = datetime(2031, 5, 5, 12, 0, 0, 123456, tzinfo=odd)
        assert (await (await engine.insert(keyed.bind(), at=at)).get()).due_at == at
        early = datetime(1900, 1, 1, tzinfo=UTC)
        assert (await (await engine.insert(keyed.bind(), at=early)).get()).due_at == early
        for bad in (
            datetime(1, 1, 2, tzinfo=UTC),
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
            datetime.max.replace(tzinfo=UTC),
            datetime.min.replace(tzinfo=timezone(timedelta(hours=12))),
        ):
            with pytest.raises(InvalidArgument, match="out of range"):
                await engine.insert(keyed.bind(), at=bad)


async def test_a_scope_without_a_key_is_refused(build: Build) -> None:
    """Section 14: it would hold nothing."""
    async with build(keyed, queues={}) as engine:
        with pytest.raises(InvalidArgument, match=r"scope=\['live', 'done'\] without a key"):
            await engine.insert(keyed.bind(), scope=["live", "done"])


async def test_a_state_over_the_limit_is_refused_by_insert(build: Build) -> None:
    """Section 14: too large a state, by ``max_state_bytes``; the message says what to do."""

    @job
    async def big(text: str) -> int:
        return len(text)

    async with build(big, max_state_bytes=1000) as engine:
        with pytest.raises(InvalidState, match="max_state_bytes=1000; keep large data elsewhere"):
            await engine.insert(big.bind(text="x" * 1000))
        assert await (await engine.insert(big.bind(text="x" * 900))).result(timeout=10) == 900


async def test_a_target_that_can_be_nobodys_is_refused(build: Build) -> None:
    """Section 14: a target is an id or a key; what can be neither is an ``InvalidArgument``, not a database error."""
    wrong: list[Any] = ["", "a\0b", "\ud800", "x" * 513, None, 1.5, True, b"key"]
    async with build(keyed, queues={}) as engine:
        for target in wrong:
            for call in (engine.get, engine.result, engine.history):
                with pytest.raises(InvalidArgument, match="target"):
                    await call(target)


async def test_a_target_that_is_not_there_raises_no_such_instance(build: Build) -> None:
    """Section 12: ``NoSuchInstance`` names what was asked for, also beyond the range of ids."""
    nobody: list[int | str] = [0, -1, 10**9, 2**63, -(2**70), "nobody"]
    async with build(keyed, queues={}) as engine:
        for target in nobody:
            for call in (engine.get, engine.result, engine.history):
                with pytest.raises(NoSuchInstance, match=str(target)) as caught:
                    await call(target)
                assert caught.value.target == target
