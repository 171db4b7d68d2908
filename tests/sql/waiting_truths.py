"""What holds after every action, read from the tables alone (and once from the model)."""

from __future__ import annotations

from collections import Counter

from waiting_model import Model
from waiting_wire import LiveRow, Tables

from gen_durable.status import Status

__all__ = ["equal", "joins", "keys_and_places", "nothing_stranded", "signals"]

TIMED = (Status.SCHEDULED, Status.AWAITING_SIGNAL, Status.AWAITING_CHILDREN)


def equal(tables: Tables, model: Model) -> None:
    """The tables hold what the model says."""
    expected = {
        one.id: LiveRow(
            one.id, one.status, one.worker, one.rev, one.attempt, one.crashes, one.key, one.scope, one.parent,
            one.parent_spawn, one.awaits, one.spawn, one.left, one.spare, one.rest,
            one.due if one.status in TIMED else "",
        )
        for one in model.live()
    }  # fmt: skip
    found = {id_: row._replace(due=row.due if row.status in TIMED else "") for id_, row in tables.live.items()}
    assert found == expected
    assert tables.stubs == {one.id: one.key for one in model.ended() if one.stub}
    assert tables.ended == {one.id: (one.status, one.rev, one.key) for one in model.ended()}
    assert tables.inboxes == {
        one.id: [
            (letter.status, letter.name, letter.number if letter.status < 2 else None, letter.dedup)
            for letter in one.inbox
        ]
        for one in model.live()
        if one.inbox
    }
    assert tables.workers == model.workers


def keys_and_places(tables: Tables) -> None:
    """R16: a key has one holder; nobody is in two places; who executes has an owner, and nobody else has one."""
    holders = Counter(row.key for row in tables.live.values() if row.key is not None and row.scope != 0)
    holders.update(tables.stubs.values())
    assert all(count == 1 for count in holders.values()), holders
    assert not tables.live.keys() & tables.ended.keys()
    assert not tables.live.keys() & tables.stubs.keys()
    for row in tables.live.values():
        assert (row.status == Status.EXECUTING) == (row.worker is not None)


def joins(tables: Tables, model: Model) -> None:
    """R15: what a parked parent still counts on is what its children's statuses say."""
    for parent in tables.live.values():
        if parent.status != Status.AWAITING_CHILDREN:
            continue
        need, total, success = model.all[parent.id].join
        mine = [one for one in model.all.values() if (one.parent, one.parent_spawn) == (parent.id, parent.spawn)]
        assert len(mine) == total, "a child is gone while its parent waits"
        ends = [tables.ended[one.id][0] for one in mine if one.id in tables.ended]
        good = ends.count(Status.DONE)
        assert parent.left == need - (good if success else len(ends))
        assert parent.spare == (total - need - (len(ends) - good) if success else None)
        assert parent.left > 0, "its join is open, and it waits"
        assert parent.spare is None or parent.spare >= 0, "its join can't open any more, and it waits"


def signals(tables: Tables, sent: dict[int, int], consumed: set[int], cleared: set[int]) -> None:
    """R10, R13: each accepted signal is in the inbox, was consumed, or went with its instance; nobody sleeps by one."""
    there = Counter(letter[2] for inbox in tables.inboxes.values() for letter in inbox if letter[0] < 2)
    for number in sent:
        assert there[number] + (number in consumed) + (number in cleared) == 1, f"signal {number}"
    for row in tables.live.values():
        if row.status == Status.AWAITING_SIGNAL:
            new = {name for status, name, _, _ in tables.inboxes.get(row.id, ()) if status == 0}
            assert not new & set(row.awaits or ()), f"{row.id} sleeps beside its signal"
    assert tables.inboxes.keys() <= tables.live.keys()


def nothing_stranded(tables: Tables) -> None:
    """R25: whatever is live is ready, has a time, has an owner whom a reaper can look up, or can be woken."""
    for row in tables.live.values():
        match row.status:
            case Status.RUNNABLE:
                pass
            case Status.SCHEDULED:
                assert row.due != "never"
            case Status.EXECUTING:
                assert row.worker is not None
            case Status.AWAITING_SIGNAL:
                assert row.awaits
            case Status.AWAITING_CHILDREN:
                live = [one for one in tables.live.values() if (one.parent, one.parent_spawn) == (row.id, row.spawn)]
                assert live, "it waits, and no child is left to end"
            case _:
                raise AssertionError(f"status {row.status}")
