"""One registered life of a worker: its connections, services and queues, from registration to drain or death."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import psycopg

from gen_durable._runtime.admitter import Admitter
from gen_durable._runtime.births import Birth, Births
from gen_durable._runtime.claimer import Claimer
from gen_durable._runtime.committer import Committer, Entry
from gen_durable._runtime.control import Control, Listener
from gen_durable._runtime.drain import Drain
from gen_durable._runtime.executor import Executor
from gen_durable._runtime.flusher import PATIENCE, Flusher
from gen_durable._runtime.held import Held, LocalQueue
from gen_durable._runtime.link import Link, LinkDown
from gen_durable._runtime.maintenance import Pruner, Reaper, Timers
from gen_durable._runtime.needs import Needs
from gen_durable._runtime.record import BACK, END, Record
from gen_durable._runtime.schedules import Schedules
from gen_durable._runtime.telling import Telling
from gen_durable._runtime.threads import DaemonThreads
from gen_durable._runtime.transaction import Transaction
from gen_durable._runtime.transactions import Transactions
from gen_durable._runtime.transactor import Transactor
from gen_durable._store.inserting import LaneKey, ensure_lanes
from gen_durable._store.operation import Catalog, drive
from gen_durable.config import LONGEST_POLL, Settings
from gen_durable.errors import DatabaseError
from gen_durable.events import DrainEvent, Hooks, emit
from gen_durable.machine import MachineSpec

__all__ = ["Worker"]

log = logging.getLogger("gen_durable")

REAP_SECONDS = 1.0
BACKLOG = 2000  # outcomes that may wait for their commit before no more is claimed
ASIDE = 20_000  # the same of those that are set aside: they wait for others' transactions, and hold up nobody
LONG_STATEMENT = 60.0  # seconds that the pruner may take for one
POLL_UNHEARD = 0.5  # where notifications can't be received


class Worker(Listener):
    """Runs steps until it is drained, declared dead, or cancelled.

    Connections: one for claims, two for commits, one for limits, one for the other services, the control thread's, and
    the pruner's while it works.
    """

    def __init__(self, settings: Settings, url: str, sql: Catalog, hooks: Hooks, client: Any) -> None:
        self._settings = settings
        self._url = url
        self._sql = sql
        self._hooks = hooks
        self._client = client
        self.id = 0
        self.dead = False
        self._drain = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ended = asyncio.Event()
        self._left = asyncio.Event()
        self._held: dict[int, Held] = {}
        self.queues = {name: LocalQueue(name, size, self._run) for name, size in settings.queues.items()}
        self._births = Births(self._held, self.queues.values(), self._left.set)
        self._telling = Telling(client._bell, self.takes)
        self._needs = Needs(client)
        self._crash: BaseException | None = None
        self._learning: set[asyncio.Future[None]] = set()
        self._machines = {(spec.name, spec.version): spec for spec in settings.machines}
        self._threads = DaemonThreads(settings.threads)
        self._transactions = Transactions(settings, url, sql)
        self._links: list[Link] = []

    # Start ----------------------------------------------------------------------------------------

    def _link(self, name: str, deadline: float = 0.0, patience: float | None = None) -> Link:
        link = Link(
            self._url,
            name,
            self._hooks,
            application_name=f"gen_durable {self._settings.name} {name}",
            deadline=max(deadline, self._settings.statement_timeout),
            patience=patience,
        )
        self._links.append(link)
        return link

    async def start(self) -> None:
        """Connects, registers and makes everything ready to run."""
        settings = self._settings
        claims, self._service_link = self._link("claim"), self._link("service")
        commits, second = [self._link(name, patience=PATIENCE) for name in ("commit", "commit aside")]
        own = {
            LaneKey(spec.queue, spec.name, spec.version): self.retention(spec)
            for spec in settings.machines
            if spec.queue in settings.queues
        }
        if foreign := await self._service_link.fetch(self._sql["workers/rights"].bind()):
            raise DatabaseError(
                f"a worker must own the tables of the schema {settings.schema!r}, and the database user does not own "
                f"{', '.join(row[0] for row in foreign)}: use the role that migrated"
            )
        await self._service_link.fetch(self._sql["queues/ensure"].bind(queues=sorted(settings.queues)))
        if own:
            await drive(ensure_lanes(self._sql, own), self._service_link.fetch)
        await self._service_link.fetch(self._sql["pruning/ensure"].bind())  # the terminal rows need partitions
        self._control = Control(settings, self._url, self._sql, self._hooks, self)
        self.id = await self._control.start()
        await self._transactions.start(self.id)
        self._executor = Executor(
            settings, self._hooks, self, self._needs, self.id, self._client, self._threads, self._transactions
        )
        poll = settings.poll_interval if self._control.listening else min(settings.poll_interval, POLL_UNHEARD)
        self._claimer = Claimer(
            claims,
            self._sql,
            self.id,
            self.queues,
            self._held,
            self._hooks,
            poll_interval=poll,
            check_interval=settings.lease,
            prefetch=settings.prefetch,
            max_crashes=self._executor.outcomes.max_crashes,
            commits_lag=self._commits_lag,
        )
        self._births.open(self.id, self._claimer, self._commits_lag)
        self._admitter = Admitter(
            self._link("limits"),
            self._sql,
            self._births,
            self._hooks,
            poll_interval=poll,
            announce=self._claimer.announce,
            release=self._claimer.release,
        )
        self._committer = Committer(commits, self._sql, self.id, self, self._hooks, self._admitter, self._births)
        self._flusher = Flusher(
            commits, second, self._committer, self, lambda held: self._executor.outcomes.keep(held.spec)
        )
        self._transactor = Transactor(self._committer, self, self._crashed)
        self._timers = Timers(self._service_link, self._sql, poll, self._claimer.announce, self._admitter.expect)
        # Where notifications come, schedules are asked for only then, and when one is due.
        look = LONGEST_POLL if self._control.listening else settings.poll_interval
        self._schedules = Schedules(self._service_link, self._sql, self._hooks, look, self._claimer.announce)
        self._reaper = Reaper(
            self._service_link,
            self._sql,
            self.id,
            self._hooks,
            lease=settings.lease,
            interval=REAP_SECONDS,
            history=settings.history != "off",
            announce=self._claimer.announce,
        )
        self._pruner = Pruner(self._link("pruner", LONG_STATEMENT), self._sql)
        self._claimer.on_rates = self._admitter.drawn
        self._claimer.on_put_off = self._timers.expect
        for queue in self.queues.values():
            queue.on_room = self._claimer.wake
            queue.commits_wait = self._flusher.wants_turn
            queue.on_full = self._telling.full
            queue.on_crash = self._crashed
        await self._learn_lanes()
        log.info("worker %d runs %s", self.id, ", ".join(f"{q} ({n})" for q, n in settings.queues.items()))

    def _commits_lag(self) -> bool:
        aside = self._flusher.aside
        return self._flusher.failing or self._flusher.waiting - aside > BACKLOG or aside > ASIDE

    async def _learn_lanes(self) -> None:
        """Which lanes of its queues this worker can run, and which queues are paused."""
        rows = await self._service_link.fetch(self._sql["queues/known"].bind(queues=list(self.queues)))
        lanes: dict[str, list[int]] = {name: [] for name in self.queues}
        paused, capped = set(), set()
        for queue, machine, version, lane, is_paused, is_capped, mark in rows:
            self._control.lane_mark = mark
            if queue is None:
                break  # there is no lane yet
            if is_paused:
                paused.add(queue)
            if is_capped:
                capped.add(queue)
            spec = self._machines.get((machine, version))
            if spec is not None:
                self._claimer.specs[lane] = (spec, self.queues[queue])
                lanes[queue].append(lane)
        for name, known in lanes.items():
            self.queues[name].lanes = known
            self.queues[name].paused = name in paused
            self.queues[name].capped = name in capped
            self.queues[name].wake_one()
        self._control.lanes = sorted(self._claimer.specs)
        self._claimer.announce(None)

    def retention(self, spec: MachineSpec) -> float | None:
        """Seconds that a machine's terminal rows stay; None: for ever."""
        keep = self._settings.retention if spec.retention is None else spec.retention
        return None if math.isinf(keep) else keep

    # Life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Works until drained or declared dead; the caller restarts a dead one under a new id."""
        services = (self._timers, self._schedules, self._reaper, self._pruner, self._admitter)
        try:
            async with asyncio.TaskGroup() as group:
                claims = group.create_task(self._claimer.run(), name="gen_durable claimer")
                flusher = group.create_task(self._flusher.run(), name="gen_durable flusher")
                passes = [group.create_task(one.run(), name=f"gen_durable {one.name}") for one in services]
                await self._ended.wait()
                if self._crash is not None:
                    raise self._crash
                if not self.dead:
                    await self._finish(claims)
                claims.cancel()
                flusher.cancel()
                for service in services:
                    service.stop()
                for link in self._links:
                    link.abort()  # a statement of a service that is under way
                # A pass ends by that. To cancel it amid its statement would make psycopg complain of the broken socket.
                await asyncio.wait(passes, timeout=1.0)
                for task in passes:
                    task.cancel()
        finally:
            await self._close()

    async def _close(self) -> None:
        self._births.over = True
        for queue in self.queues.values():
            queue.closed = True
            queue.cancel()
        for queue in self.queues.values():
            await queue.wait_cancelled(1.0)
        if hasattr(self, "_transactor"):
            await self._transactor.close()
        await self._transactions.close()
        self._threads.shutdown()
        for task in self._learning:
            task.cancel()
        await asyncio.gather(*self._learning, return_exceptions=True)
        for link in self._links:
            await link.close()
        if hasattr(self, "_control"):
            await self._control.stop()

    async def abandon(self) -> None:
        """Undoes a start that did not come to its end."""
        await self._close()

    def drain(self) -> None:
        """Stops claiming, lets running steps finish, hands the rest back. A second call cancels what still runs."""
        if self._drain.is_set():
            self._hurry.set()
        self._drain.set()
        self._ended.set()

    async def _finish(self, claims: asyncio.Task[None]) -> None:
        until = time.monotonic() + self._settings.drain_timeout
        for queue in self.queues.values():
            queue.closed = True
        running = sum(queue.running for queue in self.queues.values())
        log.info("worker %d drains: %d steps are running", self.id, running)
        if self._hooks.drain:
            emit(self._hooks.drain, DrainEvent(running=running))
        self._executor.outcomes.draining = True
        drain = Drain(
            worker=self.id,
            queues=self.queues.values(),
            held=self._held,
            births=self._births,
            claimer=self._claimer,
            link=self._links[0],
            flusher=self._flusher,
            transactor=self._transactor,
            left=self._left,
            hurry=self._hurry,
            until=until,
            statement_timeout=self._settings.statement_timeout,
        )
        await drain.run(claims)

    # What the control thread reports --------------------------------------------------------------

    def notified(self, message: str) -> None:
        """A wake-up from another process."""
        if not hasattr(self, "_pruner"):
            return
        kind, _, name = message.partition(":")
        if kind == "t":
            self._timers.wake()
        elif kind == "q":
            self._claimer.announce(name)
        elif kind == "c":
            worker, instance, rev = name.split(":")
            if worker == str(self.id):
                self.cancelled(int(instance), int(rev))
        elif kind == "e":
            self._client._ended(int(name))
        elif kind == "s":
            self._schedules.wake()
        elif kind == "k":
            self._admitter.knock()
        elif kind == "m":
            self._client._limit_changed(*name.split(":", 1))
        else:
            self._timers.wake()
            self._schedules.wake()
            self._claimer.announce(None)
            self.lanes_changed()

    @property
    def hears(self) -> bool:
        """Whether notifications reach it."""
        return hasattr(self, "_control") and self._control.listening

    def schedules_changed(self) -> None:
        """The client of this process has made or changed a schedule."""
        self._schedules.wake()

    def lanes_changed(self) -> None:
        """There are new lanes."""
        if hasattr(self, "_pruner") and not self._ended.is_set():
            task = asyncio.ensure_future(self._learn_again())
            self._learning.add(task)
            task.add_done_callback(self._learning.discard)

    async def _learn_again(self) -> None:
        known = set(self._claimer.specs)
        try:
            await self._learn_lanes()
        except (LinkDown, psycopg.Error) as error:  # the next heartbeat says so again
            log.warning("lanes: %s", str(error).strip())
        if known and set(self._claimer.specs) != known:
            self._pruner.ensure_soon()

    def declared_dead(self) -> None:
        """Others have this worker's claims."""
        self.dead = self._births.over = True
        self._ended.set()

    def _crashed(self, error: BaseException) -> None:
        """An executor ended by a fault of the engine's own: this life ends, another begins."""
        self._crash = error
        self._ended.set()

    # What the executor and the flusher report -----------------------------------------------------

    async def _run(self, held: Held) -> None:
        await self._executor.run(held)

    def add(self, held: Held, record: Record) -> None:
        """An outcome for the next commit."""
        self._flusher.add(held, record)

    def add_within(self, held: Held, record: Record, transaction: Transaction) -> None:
        """An outcome for its step's own transaction."""
        self._transactor.add(held, record, transaction)

    def again(self, held: Held, delay: float) -> None:
        """Nothing of its transaction was committed: its step runs again under the same claim."""
        held.values = held.spawning = None
        asyncio.get_running_loop().call_later(delay, self._put_back, held)

    async def overtaken(self, held: Held) -> bool:
        """An earlier run's commit may have come late: then the claim is that one's, and goes back to its queue."""
        if await self._committer.still_ours(held):
            return False
        self.left(held, None)
        self._claimer.check_soon()
        return True

    def _put_back(self, held: Held) -> None:
        if not held.gone and self._held.get(held.id) is held:
            held.buffered_at = time.monotonic()
            held.queue.put([held])
            self._left.set()

    def goes_on(self, held: Held) -> None:
        """Run ahead: the commit is there, the next step may run."""
        if held.gone:  # cancelled, after the commit and before its answer
            return
        held.buffered_at = time.monotonic()
        held.queue.put([held])
        self._left.set()
        if held.queue.paused or held.queue.crowded:
            self._claimer.wake()  # to give it back, now or when it has waited for long

    def left(self, held: Held, record: Record | None) -> None:
        """A claim has ended."""
        self._claimer.forget(held)
        self._left.set()
        self._below_cap(held.queue)
        if self._claimer.held_up:
            self._claimer.wake()
        if record is None:
            return
        if record.op == END:
            self._client._ended(held.id)
        elif record.op != BACK:
            if record.delay is not None:
                self._timers.expect(record.delay)
            if held.spawning:
                self.awake({child.lane for child in held.spawning})
                if any(child.delay or child.at for child in held.spawning):
                    self._timers.wake()
                held.spawning = None
        else:
            self._telling.gone_back()
            if record.delay:
                self._timers.expect(record.delay)
            elif not _limited(held, record):
                self._claimer.announce(self._queue_of(held, record))

    def _below_cap(self, queue: LocalQueue) -> None:
        """A claim has ended: where the queue has a cap in the cluster, somebody may claim again."""
        if queue.capped:
            self._claimer.announce(queue.name)
            self._client._bell.later(queue.name)

    def refused(self, held: Held, error: Exception) -> None:
        """Its outcome can't be committed: the step gets that as its error."""
        task = asyncio.create_task(self._executor.refuse(held, error), name="gen_durable refused outcome")
        self._learning.add(task)
        task.add_done_callback(self._learning.discard)

    def awake(self, lanes: set[int]) -> None:
        """A commit has woken rows of these lanes."""
        for lane in lanes:
            if lane in self._claimer.specs:
                self._claimer.announce(self._claimer.specs[lane][1].name)

    def cancelled(self, instance_id: int, rev: int) -> None:
        """Somebody has cancelled an instance that this worker holds: its run is of no more use.

        ``rev`` is the claim's that was cancelled: the word of it may come when a retry has been claimed meanwhile.
        """
        held = self._held.get(instance_id)
        if held is None or held.rev < rev:
            self._claimer.note_cancelled(instance_id, rev)  # the claim's answer may be on its way
        if held is None or held.rev > rev:
            return
        held.gone = True
        self._claimer.forget(held)
        self._below_cap(held.queue)
        self._left.set()
        if held.task is not None:
            held.task.cancel()
        elif held in held.queue.buffer:
            held.queue.buffer.remove(held)

    def wake_list(self, batch: list[Entry]) -> list[str]:
        """The queues whose other workers should hear that rows went back: those that this one has no room for."""
        back = [(held, record) for held, record in batch if record.op == BACK and not record.delay]
        return self._telling.wake_list(self._queue_of(*entry) for entry in back if not _limited(*entry))

    def _queue_of(self, held: Held, record: Record) -> str:
        return self._needs.queue_of_lane[record.lane] if record.lane else held.queue.name

    # What the client of the same process reports --------------------------------------------------

    def takes(self, queue: str, count: int = 1) -> bool:
        """Whether this worker would start so many rows of the queue at once, so that nobody else need be told."""
        local = self.queues.get(queue)
        if local is None or local.closed or local.paused or self._claimer.held_up or self._claimer.failing:
            return False
        return local.load + count <= local.concurrency

    def expect(self, counts: Mapping[int, int]) -> Birth | None:
        """Keeps places for rows that are about to be inserted, so many of each lane; None: they are to be claimed."""
        return self._births.expect(counts)

    def expect_one(self) -> Birth | None:
        """Keeps a place for a row that a signal may wake, of whichever lane; None: it is to be claimed."""
        return self._births.expect_one()

    def knocked(self) -> None:
        """Rows have come into lines of limits, or something was freed there."""
        self._admitter.knock()

    def inserted(self, queues: set[str], soonest: float | None) -> None:
        """The client of this process has inserted rows."""
        for queue in queues:
            self._claimer.announce(queue)
        if soonest is not None:
            self._timers.expect(soonest)


def _limited(held: Held, record: Record) -> bool:
    """Whether a row that goes back has a limit: then it goes into its line, where nobody claims it."""
    line = (record.gate or record.rate) if record.limits else (held.gate or held.rate)
    return line is not None
