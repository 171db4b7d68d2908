"""Commits the outcomes of transactional steps, each in its step's own transaction."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from gen_durable._runtime.committer import Committer, Entry, Settled, fence
from gen_durable._runtime.held import Held
from gen_durable._runtime.link import LinkClosed, LinkDown
from gen_durable._runtime.record import ON, Record
from gen_durable._runtime.transaction import Transaction, state_of
from gen_durable._store.inserting import LaneGone
from gen_durable._store.transaction import CLAIM_LOST, MARK_LOST
from gen_durable.errors import TransactionEnded, TransactionError

__all__ = ["RERUNS", "Transactor", "pause_before", "runs_again"]

log = logging.getLogger("gen_durable")

RERUNS = 5  # of a step whose transaction the database refuses, by no fault of the step; then it is one
FIRST_PAUSE = 0.01
LONGEST_PAUSE = 1.0

_CONFLICTS = ("40001", "40P01")
_FORGOTTEN = "26000"  # a step has discarded what its session had prepared
# What is full or shut, for a while: locks that can't be had, memory, disk, the queue of notifications.
_TROUBLE = ("53", "55", "57", "58")


def runs_again(held: Held, error: BaseException, transaction: Transaction) -> bool:
    """Whether an error of a step's own SQL is a conflict or a broken connection: its step runs again, a few times.

    A step that the server cut off because it was idle for too long would be so again.
    """
    state = state_of(error)
    cut_off = (
        (transaction.broken or getattr(error, "connection_invalidated", False))
        and state != "25P03"
        and not isinstance(error, TimeoutError)
    )
    return held.reruns < RERUNS and (state in _CONFLICTS or cut_off)


def pause_before(held: Held) -> float:
    """Seconds until it runs again; counts the run."""
    held.reruns += 1
    return min(FIRST_PAUSE * 4.0 ** (held.reruns - 1), LONGEST_PAUSE) * (0.5 + random.random())


def _is_passing(state: str) -> bool:
    return state in (*_CONFLICTS, _FORGOTTEN) or state[:2] in _TROUBLE


class Transactor:
    """A commit is a task of its own, which no cancel of the step's executor reaches: it comes to its end."""

    def __init__(self, committer: Committer, settled: Settled, on_crash: Callable[[BaseException], None]) -> None:
        self._committer = committer
        self._settled = settled
        self._on_crash = on_crash
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, held: Held, record: Record, transaction: Transaction) -> None:
        """Takes an outcome, and the transaction that is to hold it: its step's code has ended."""
        record.mark = str(transaction.mark)
        task = asyncio.create_task(self._commit((held, record), transaction), name="gen_durable transaction")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        # A closed link is no crash: the worker's life is over, and the lease gives the row back.
        if error is not None and not isinstance(error, LinkClosed):
            self._on_crash(error)

    async def wait_idle(self) -> None:
        """Waits until everything that was added is committed, or given up."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """Ends what is under way; the lease gives it back."""
        await asyncio.sleep(0)  # a task that is cancelled before it begins would never close its connection
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=1.0)

    async def _commit(self, entry: Entry, transaction: Transaction) -> None:
        held, _ = entry
        started = time.monotonic()
        # A full queue of notifications is no fault of the step's: at last it goes without the wake-up.
        wake = [] if held.reruns == RERUNS else self._settled.wake_list([entry])
        try:
            committed = await self._committer.send(transaction, [entry], wake)
        except asyncio.CancelledError:
            await transaction.discard()
            raise
        except LinkDown as error:
            await transaction.discard()
            await self._unanswered(entry, error, started)
        except Exception as error:  # noqa: BLE001  # of the user's deferred constraints, or of a session's hooks
            await (transaction.discard() if state_of(error) == _FORGOTTEN else transaction.undo())
            await self._failed(entry, error, bool(wake), started)
        else:
            transaction.done()
            assert fence(entry) in committed
            self._committed(entry, started)

    def _committed(self, entry: Entry, started: float) -> None:
        self._committer.account(1, [], time.monotonic() - started)
        self._committer.settle(*entry)

    async def _unanswered(self, entry: Entry, error: Exception, started: float) -> None:
        """The connection broke, after the commit was sent perhaps: the row tells."""
        held = entry[0]
        if await self._is_there(entry):
            self._committed(entry, started)
        elif await self._committer.still_ours(held):
            # Should the server yet carry out what it was sent, the fence refuses the next run's.
            held.doubt = True
            self._again(held, error)
        else:
            self._stale(entry, started)

    async def _is_there(self, entry: Entry) -> bool:
        """Whether an outcome was committed: this run's, or, in doubt, an earlier one's, which then is what counts."""
        held, record = entry
        if not await self._committer.look_up([entry]):
            return False
        return not held.doubt or record.op != ON or await self._committer.as_it_stands(held, record)

    async def _failed(self, entry: Entry, error: Exception, woke: bool, started: float) -> None:
        held = entry[0]
        state = state_of(error)
        if CLAIM_LOST in str(error) and state == "22P02":
            if held.doubt and await self._is_there(entry):
                self._committed(entry, started)  # the one before this, whose answer never came
            elif await self._committer.still_ours(held):  # now that it is rolled back
                self._settled.refused(held, TransactionError(
                    f"step {held.step!r} has ended its own instance in its transaction, by a cancel of it or of its "
                    "parent: return Stop or raise Cancel for that, or cancel without conn="
                ))  # fmt: skip
            else:
                self._stale(entry, started)
        elif MARK_LOST in str(error) and state == "22P02":
            self._settled.refused(held, TransactionEnded(
                f"step {held.step!r} has ended its transaction and begun another: what it did before may be committed "
                "without its outcome, so it is not run again; leave the end of the transaction to the engine"
            ))  # fmt: skip
        elif held.reruns < RERUNS and (
            _is_passing(state)
            or (woke and state == "54000")
            or isinstance(error, LaneGone)  # of a child's: younger than the snapshot that the step has asked for
        ):
            self._again(held, error)
        elif not state and await self._is_there(entry):  # a hook of the session's, behind its commit
            log.warning("instance %d, step %r: its transaction is committed, and then: %s", held.id, held.step, error)
            self._committed(entry, started)
        else:
            self._settled.refused(held, error)

    def _again(self, held: Held, error: Exception) -> None:
        if held.reruns >= RERUNS:
            self._settled.refused(held, error)
            return
        log.info("instance %d, step %r: its transaction was refused and runs again: %s", held.id, held.step,
            str(error).strip())  # fmt: skip
        self._settled.again(held, pause_before(held))

    def _stale(self, entry: Entry, started: float) -> None:
        self._committer.account(0, [entry], time.monotonic() - started)
        self._settled.left(entry[0], None)
