"""What the tables should hold, in plain Python: instances, their inboxes, joins, keys and history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from gen_durable.status import Status, TransitionKind

__all__ = ["Instance", "Letter", "Model"]

NOW, LATER, NEVER = "now", "later", "never"


@dataclass
class Letter:
    """A signal; ``number`` is its payload, by which it is known from its acceptance to its end."""

    number: int
    name: str
    dedup: str | None
    status: int = 0  # 0 new, 1 handed to a step that awaits more, 2 consumed, with its dedup_key kept


@dataclass
class Instance:
    """An instance from its insertion until it is pruned."""

    id: int
    key: str | None = None
    scope: int | None = None
    status: int = Status.RUNNABLE
    due: str = NOW
    rev: int = 0
    worker: int | None = None
    attempt: int = 0
    crashes: int = 0
    parent: int | None = None
    parent_spawn: int | None = None
    awaits: list[str] | None = None
    spawn: int | None = None
    left: int | None = None
    spare: int | None = None
    rest: bool | None = None
    inbox: list[Letter] = field(default_factory=list)
    woken: str | None = None  # by what it was woken from its last wait
    join: tuple[int, int, bool] = (0, 0, False)  # of its last spawn: how many are needed, of how many, done ones only
    stub: bool = False  # it has ended, and its key is reserved
    expired: bool = False
    before: Instance | None = None  # as it was when it failed or was cancelled: a retry hands that on
    spoken: tuple[int, int] | None = None  # the transition that its terminal row stands for
    history: set[tuple[int, int]] = field(default_factory=set)

    @property
    def live(self) -> bool:
        return self.status < Status.DONE

    def waits_no_more(self) -> None:
        self.awaits = self.left = self.spare = self.rest = None

    def matching(self) -> list[Letter]:
        """What a step is handed in ``ctx.awaited``."""
        names = self.awaits or []
        return [letter for letter in self.inbox if letter.status < 2 and letter.name in names]


class Model:
    """All instances by id; each method is what one statement or operation of the store does."""

    def __init__(self) -> None:
        self.all: dict[int, Instance] = {}
        self.workers: set[int] = set()
        self.cleared: set[int] = set()  # signals that went with the end of their instance

    # Looking --------------------------------------------------------------------------------------

    def live(self, *statuses: int) -> list[Instance]:
        return [i for i in self.all.values() if i.live and (not statuses or i.status in statuses)]

    def ended(self) -> list[Instance]:
        return [i for i in self.all.values() if not i.live]

    def holder(self, key: str | None) -> Instance | None:
        """Who excludes others from a key."""
        found = [i for i in self.all.values() if (i.live or i.stub) and i.key == key and i.scope != 0]
        assert key is None or len(found) <= 1
        return found[0] if found and key is not None else None

    def addressed(self, key: str) -> Instance | None:
        """Which instance a signal to a key reaches: the newest live one that has it."""
        return max((i for i in self.live() if i.key == key), key=lambda i: i.id, default=None)

    def children(self, parents: Iterable[int], spawn: int | None = None) -> list[int]:
        wanted = set(parents)
        return sorted(i.id for i in self.live() if i.parent in wanted and spawn in (None, i.parent_spawn))

    def waits_for(self, child: Instance) -> Instance | None:
        """The parent that waits for this child, or has not gone on from that wait."""
        parent = self.all.get(child.parent or 0)
        if parent is None or not parent.live or parent.spawn != child.parent_spawn or parent.left is None:
            return None
        return parent

    # Inserting and signalling ---------------------------------------------------------------------

    def inserted(self, new: Instance, *, later: bool = False) -> None:
        assert new.id not in self.all
        new.status, new.due = (Status.SCHEDULED, LATER) if later else (Status.RUNNABLE, NOW)
        self.all[new.id] = new

    def replaceable(self, key: str) -> Instance | None:
        held = self.holder(key)
        fresh = held is not None and held.live and held.status <= Status.SCHEDULED and held.rev == 0
        return held if fresh and held is not None and held.parent is None else None

    def signal(self, to: Instance, letter: Letter) -> tuple[bool, bool]:
        """Whether it is new, and whether it wakes the instance."""
        if letter.dedup is not None and any(known.dedup == letter.dedup for known in to.inbox):
            return False, False
        to.inbox.append(letter)
        woken = to.status == Status.AWAITING_SIGNAL and letter.name in (to.awaits or [])
        if woken:
            to.status, to.woken = Status.RUNNABLE, "signal"
        return True, woken

    # Claims ---------------------------------------------------------------------------------------

    def claimed(self, one: Instance, worker: int) -> None:
        assert one.status == Status.RUNNABLE
        one.status, one.worker, one.rev = Status.EXECUTING, worker, one.rev + 1

    def holds(self, id_: int, rev: int, worker: int) -> bool:
        """Whether a claim is still good."""
        one = self.all.get(id_)
        return one is not None and (one.status, one.rev, one.worker) == (Status.EXECUTING, rev, worker)

    def released(self, one: Instance) -> None:
        one.status, one.worker, one.rev = Status.RUNNABLE, None, one.rev + 1

    def reaped(self) -> list[Instance]:
        back = [i for i in self.live(Status.EXECUTING) if i.worker not in self.workers]
        for one in back:
            one.status, one.due = (Status.SCHEDULED, LATER) if one.crashes else (Status.RUNNABLE, NOW)
            one.worker, one.rev = None, one.rev + 1
            one.attempt, one.crashes = one.attempt + 1, one.crashes + 1
            one.history.add((one.rev, TransitionKind.CRASHED))
        return back

    def promoted(self, one: Instance) -> None:
        if one.status != Status.SCHEDULED:
            one.woken = "deadline"
        one.status = Status.RUNNABLE

    # Outcomes -------------------------------------------------------------------------------------

    def _moved(self, one: Instance, kind: int) -> None:
        one.rev += 1
        one.history.add((one.rev, kind))

    def _consumed(self, one: Instance, handed: list[int]) -> None:
        for letter in [known for known in one.inbox if known.number in handed]:
            if letter.dedup is None:
                one.inbox.remove(letter)
            else:
                letter.status = 2
        for letter in one.inbox:
            if letter.status == 1:
                letter.status = 0  # what an earlier step was handed, and left, is for a later await

    def went_on(self, one: Instance, handed: list[int]) -> None:
        self._moved(one, TransitionKind.NEXT)
        self._consumed(one, handed)
        one.waits_no_more()
        one.attempt = one.crashes = 0

    def went_back(self, one: Instance, kind: int, handed: list[int], *, later: bool) -> None:
        self._moved(one, kind)
        one.worker = None
        one.status, one.due = (Status.SCHEDULED, LATER) if later else (Status.RUNNABLE, NOW)
        if kind == TransitionKind.RETRY:
            one.attempt += 1
            return
        self._consumed(one, handed)
        one.waits_no_more()
        one.attempt = one.crashes = 0

    def awaited(self, one: Instance, names: list[str], handed: list[int], *, later: bool) -> None:
        self._moved(one, TransitionKind.AWAIT)
        one.waits_no_more()
        one.attempt = one.crashes = 0
        one.worker, one.awaits = None, names
        for letter in one.inbox:
            if letter.number in handed and letter.status == 0:
                letter.status = 1
        awake = any(letter.status == 0 for letter in one.matching())
        one.status, one.woken = (Status.RUNNABLE, "signal") if awake else (Status.AWAITING_SIGNAL, None)
        one.due = LATER if later else NEVER

    def spawned(
        self, one: Instance, join: tuple[int, int, bool], handed: list[int], *, later: bool, rest: bool | None
    ) -> None:
        self._moved(one, TransitionKind.SPAWN)
        self._consumed(one, handed)
        one.waits_no_more()
        one.attempt = one.crashes = 0
        need, total, success = one.join = join
        one.worker, one.spawn, one.left, one.rest = None, (one.spawn or 0) + 1, need, rest
        one.spare = total - need if success else None
        one.status = Status.AWAITING_CHILDREN if total else Status.RUNNABLE
        one.woken = None if total else "join"
        one.due = LATER if later else NEVER

    def finished(self, ends: list[tuple[Instance, int]], *, speaks: bool) -> None:
        """What one statement ends, with what becomes of the joins that count on it."""
        told: Counter[tuple[int, int]] = Counter()
        good: Counter[tuple[int, int]] = Counter()
        for one, kind in ends:
            one.rev += 1
            one.before = None if kind == TransitionKind.DONE else replace(one, inbox=list(one.inbox), before=None)
            one.status, one.worker = kind + 3, None
            one.spoken = (one.rev, kind) if speaks else None
            if not speaks:
                one.history.add((one.rev, kind))
            one.waits_no_more()
            self.cleared |= {letter.number for letter in one.inbox if letter.status < 2}
            one.inbox.clear()
            one.attempt = one.crashes = 0
            one.stub = one.scope is not None and bool(one.scope >> one.status & 1)
            one.expired = False
            if one.parent is not None and one.parent_spawn is not None:
                told[one.parent, one.parent_spawn] += 1
                good[one.parent, one.parent_spawn] += kind == TransitionKind.DONE
        for (parent_id, spawn), count in told.items():
            parent = self.all.get(parent_id)
            if parent is not None and parent.status == Status.AWAITING_CHILDREN and parent.spawn == spawn:
                self._counted(parent, count, good[parent_id, spawn])

    def _counted(self, parent: Instance, ends: int, good: int) -> None:
        assert parent.left is not None
        parent.left -= ends if parent.spare is None else good
        if parent.spare is not None:
            parent.spare -= ends - good
        if parent.left <= 0 or (parent.spare is not None and parent.spare < 0):
            parent.status, parent.woken = Status.RUNNABLE, "join"

    # Steering and pruning -------------------------------------------------------------------------

    def cancelled(self, ids: list[int], *, cascade: bool) -> set[int]:
        """Which end; parents before their children, each level by one statement."""
        gone: set[int] = set()
        level = sorted(ids)
        while level:
            ends = [self.all[id_] for id_ in level if id_ in self.all and self.all[id_].live]
            self.finished([(one, int(TransitionKind.CANCELLED)) for one in ends], speaks=False)
            gone |= {one.id for one in ends}
            level = self.children(level) if cascade else []
        return gone

    def can_retry(self, one: Instance) -> bool:
        return one.key is None or one.scope == 0 or self.holder(one.key) in (None, one)

    def retried(self, one: Instance) -> None:
        if one.spoken is not None:
            one.history.add(one.spoken)
            one.spoken = None
        one.status, one.due, one.rev, one.stub, one.expired = Status.RUNNABLE, NOW, one.rev + 1, False, False
        if one.before is not None:
            self._handed_on(one, one.before)
        parent = self.waits_for(one)
        if parent is not None and parent.status == Status.AWAITING_CHILDREN:
            assert parent.left is not None
            if parent.spare is None:
                parent.left += 1
            else:
                parent.spare += 1

    def _handed_on(self, one: Instance, before: Instance) -> None:
        one.awaits, one.left, one.spare, one.rest = before.awaits, before.left, before.spare, before.rest
        one.inbox, one.woken, one.before = before.inbox, before.woken, None
        self.cleared -= {letter.number for letter in one.inbox}
        if before.status == Status.AWAITING_SIGNAL:
            one.status, one.due, one.woken = Status.AWAITING_SIGNAL, before.due, None
        elif before.status == Status.AWAITING_CHILDREN:
            one.woken = "deadline"  # it goes on with what is there

    def swept(self) -> None:
        for one in [i for i in self.ended() if i.expired]:
            one.stub = False
            if self.waits_for(one) is None:
                del self.all[one.id]
