"""register, heartbeat, relock, unregister and reap: who lives, and what becomes of a dead one's claims."""

from __future__ import annotations

import msgspec
import pytest
from sql_stage import Connection, Stage

from gen_durable._store.migrating import latest_version

ALL = "SELECT id, suspect_at IS NOT NULL FROM {schema}.workers ORDER BY id"
# With so short a lease a server counts as long started; a worker seen "in the future" is not silent all the same.
QUICK = 0.003
AHEAD = -3600.0


async def hold(stage: Stage, worker: int, count: int = 1, **row: object) -> list[tuple[int, int]]:
    lane = await stage.lane()
    await stage.insert(*[{"lane": lane} | row] * count)
    return [(claim[0], claim[1]) for claim in await stage.claim((lane, 0, count), worker=worker)]


async def test_registering_takes_the_session_lock_and_refuses_a_taken_id(stage: Stage) -> None:
    owner, other = await stage.connect(), await stage.connect()
    given = {"name": "n", "host": "h", "pid": 1, "queues": '{"q": 1}', "lanes": [1, 2]}
    assert await stage.run("workers/register", on=owner, worker=7, lock=True, **given) == [(True,)]
    assert await stage.run("workers/register", on=other, worker=7, lock=True, **given) == []
    assert await stage.run("workers/register", on=other, worker=8, lock=False, **given) == [(False,)]
    assert await stage.run("workers/relock", on=other, worker=7) == [(False,)]
    await owner.close()
    assert await stage.ask("SELECT pg_advisory_lock(%s, 7)", stage.lockspace, on=other), "its end frees the lock"
    ((id_, name, host, pid, queues, *_, silent), _) = await stage.run("reading/workers")
    assert (id_, name, host, pid, msgspec.json.decode(queues)) == (7, "n", "h", 1, {"q": 1})
    assert 0 <= silent < 60


async def test_a_heartbeat_keeps_a_worker_and_tells_a_dead_one(stage: Stage) -> None:
    """R25"""
    await stage.register(7, seen=100)
    newest = await stage.lane()
    await stage.ask("UPDATE {schema}.workers SET suspect_at = now()")
    assert await stage.run("workers/heartbeat", worker=7, locked=True, lanes=[5]) == [(f"{newest}",)]
    assert await stage.ask("SELECT locked, lanes, suspect_at, {clock} - seen_at < '9 s' FROM {schema}.workers") == [
        (True, [5], None, True)
    ]
    assert await stage.run("workers/heartbeat", worker=8, locked=False, lanes=[]) == []
    assert await stage.run("workers/unregister", worker=7) == [(7,)]
    assert await stage.run("workers/heartbeat", worker=7, locked=False, lanes=[]) == []


async def test_a_silent_workers_claims_come_back(stage: Stage, ear: Connection) -> None:
    """R25, R4: attempt and crashes + 1, a new token, a note in the history, and the queue is told."""
    await stage.register(7, seen=20)
    await stage.register(8, seen=AHEAD)
    ((id_, rev),) = await hold(stage, 7)
    ((kept, _),) = await hold(stage, 8)
    assert await stage.reap(lease=QUICK) == (1, [7])
    assert await stage.row(id_, "status, worker, rev, attempt, crashes") == (0, None, rev + 1, 1, 1)
    assert await stage.row(kept, "status, worker") == (2, 8)
    assert await stage.ask(ALL) == [(8, False)]
    assert await stage.ask("SELECT instance_id, seq, outcome, step, attempt, worker FROM {schema}.transitions") == [
        (id_, rev + 1, 6, "one", 0, None)
    ]
    assert await stage.heard(ear) == ["q:q"]
    assert await stage.reap(lease=QUICK) == (0, [])


async def test_history_of_a_death_can_be_off(stage: Stage) -> None:
    await stage.register(7, seen=20)
    await hold(stage, 7)
    assert await stage.reap(lease=QUICK, keep=False) == (1, [7])
    assert await stage.ask("SELECT FROM {schema}.transitions") == []


async def test_a_lost_session_lock_is_a_death_after_its_grace(stage: Stage) -> None:
    """R25: within seconds where the database sees the death; a worker that just reconnects gets its grace."""
    owner = await stage.connect()
    await stage.register(7, lock=True, on=owner, seen=AHEAD)
    (claim,) = await hold(stage, 7)
    assert await stage.reap(lease=QUICK, grace=0) == (0, [])
    assert await stage.ask(ALL) == [(7, False)]
    await owner.close()
    await stage.ask("SELECT pg_advisory_lock(%s, 7)", stage.lockspace)  # granted when the server has noticed
    await stage.ask("SELECT pg_advisory_unlock(%s, 7)", stage.lockspace)
    assert await stage.reap(lease=QUICK, grace=60) == (0, [])
    assert await stage.ask(ALL) == [(7, True)], "first it is only suspected"
    assert await stage.reap(lease=QUICK, grace=60) == (0, []), "grace"
    await stage.ask("UPDATE {schema}.workers SET suspect_at = suspect_at - interval '61 s'")
    assert await stage.reap(lease=QUICK, grace=60) == (1, [7])
    assert await stage.row(claim[0], "status, attempt") == (0, 1)


async def test_a_suspect_is_cleared_by_its_heartbeat_or_its_lock(stage: Stage) -> None:
    owner = await stage.connect()
    await stage.register(7, lock=True, on=owner, seen=AHEAD)
    await stage.ask("UPDATE {schema}.workers SET suspect_at = now() - interval '1 h'")
    assert await stage.reap(lease=QUICK, grace=0) == (0, []), "it has its lock again"
    assert await stage.ask(ALL) == [(7, False)]
    await stage.ask("UPDATE {schema}.workers SET suspect_at = now() - interval '1 h'")
    await stage.run("workers/heartbeat", worker=7, locked=True, lanes=[])
    assert await stage.ask(ALL) == [(7, False)]


async def test_a_worker_without_a_lock_is_judged_by_its_silence_alone(stage: Stage) -> None:
    """Behind a pooler there is no lock to lose."""
    await stage.register(7, lock=False, seen=AHEAD)
    await hold(stage, 7)
    for _ in range(3):
        assert await stage.reap(lease=QUICK, grace=0) == (0, [])


async def test_a_lock_that_a_start_of_the_server_dropped_says_nothing(stage: Stage) -> None:
    """R27: a restart drops every lock at once; only who was heard of since can lose one."""
    await stage.register(7, seen=1_000_000_000)
    await stage.ask("UPDATE {schema}.workers SET locked = true")
    await hold(stage, 7)
    for _ in range(2):
        assert await stage.reap(lease=1_000_000, grace=0) == (0, [])
    assert await stage.ask(ALL) == [(7, False)]
    await stage.run("workers/heartbeat", worker=7, locked=True, lanes=[])
    await stage.reap(lease=1_000_000, grace=0)
    assert await stage.reap(lease=1_000_000, grace=0) == (1, [7])


async def test_silence_counts_from_the_start_of_the_server(stage: Stage) -> None:
    """R27: nobody could be heard while it was away."""
    await stage.register(7, seen=1_000_000_000)
    await hold(stage, 7)
    up: float = await stage.value("SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float8")
    assert await stage.reap(lease=up + 300) == (0, [])
    assert await stage.reap(lease=up / 2) == (1, [7])


async def test_a_worker_that_is_silent_and_has_lost_its_lock_dies_at_once(stage: Stage) -> None:
    await stage.register(7, seen=20)
    await stage.ask("UPDATE {schema}.workers SET locked = true")
    (claim,) = await hold(stage, 7)
    assert await stage.reap(lease=QUICK, grace=60) == (1, [7])
    assert await stage.row(claim[0], "status, attempt") == (0, 1)


async def test_claims_of_a_worker_that_is_in_no_table_come_back(stage: Stage) -> None:
    """R25: no row is stranded, whatever became of its owner's row."""
    orphans = [await hold(stage, worker, 3) for worker in (1, 5, 2_000_000_000)]
    await stage.ask("DELETE FROM {schema}.workers")
    await stage.register(6, seen=AHEAD)
    living = await hold(stage, 6, 2)
    assert await stage.reap(lease=QUICK) == (9, [])
    for claims in orphans:
        for id_, rev in claims:
            assert await stage.row(id_, "status, rev, attempt") == (0, rev + 1, 1)
    for id_, rev in living:
        assert await stage.row(id_, "status, rev, attempt") == (2, rev, 0)


async def test_a_big_loss_comes_back_in_batches(stage: Stage) -> None:
    await stage.register(7, seen=20)
    await hold(stage, 7, 25)
    assert await stage.reap(lease=QUICK, batch=10) == (10, [7])
    assert await stage.reap(lease=QUICK, batch=10) == (10, [])
    assert await stage.reap(lease=QUICK, batch=10) == (5, [])


async def test_rows_that_are_not_executing_are_left_alone(stage: Stage) -> None:
    lane = await stage.lane()
    placed = await stage.insert(*[{"lane": lane}] * 2, {"lane": lane, "delay": 9})
    await stage.ask("UPDATE {schema}.instances SET status = 3 WHERE id = %s", placed[0])
    await stage.register(7, seen=20)
    assert await stage.reap(lease=QUICK) == (0, [7])


async def test_only_one_reaper_at_a_time(stage: Stage) -> None:
    """The second one does not wait: it does nothing."""
    first = await stage.connect()
    await stage.register(7, seen=20)
    await hold(stage, 7)
    async with first.transaction():
        assert await stage.reap(lease=QUICK, on=first) == (1, [7])
        assert await stage.reap(lease=QUICK) == (0, [])
    assert await stage.reap(lease=QUICK) == (0, [])


async def test_a_locked_claim_is_left_for_the_next_pass(stage: Stage) -> None:
    """One that is just being committed: the reaper does not wait for it, and finds it as an orphan later."""
    await stage.register(7, seen=20)
    (one, two) = await hold(stage, 7, 2)
    other = await stage.connect()
    async with other.transaction():
        await stage.ask("SELECT FROM {schema}.instances WHERE id = %s FOR UPDATE", one[0], on=other)
        assert await stage.reap(lease=QUICK) == (1, [7])
        assert await stage.row(two[0], "status") == (0,)
    assert await stage.reap(lease=QUICK) == (1, [])


@pytest.mark.parametrize("schema_lock", [0, 1, 2])
async def test_the_engines_own_locks_are_not_taken_for_a_workers(stage: Stage, schema_lock: int) -> None:
    """Another database's and another schema's locks neither."""
    await stage.register(7, seen=AHEAD)
    await stage.ask("UPDATE {schema}.workers SET locked = true")
    holder = await stage.connect()
    await stage.ask("SELECT pg_advisory_lock(%s, 7)", stage.lockspace ^ 1, on=holder)
    await stage.ask("SELECT pg_advisory_lock(%s)", (stage.lockspace << 32) + 7, on=holder)
    await stage.ask("SELECT pg_advisory_lock(%s, %s)", stage.lockspace ^ 3, schema_lock, on=holder)
    await stage.reap(lease=QUICK, grace=0)
    assert await stage.reap(lease=QUICK, grace=0) == (0, [7])


async def test_the_version_is_the_highest_migration(stage: Stage) -> None:
    assert await stage.run("workers/version") == [(latest_version(), False)]


async def test_a_row_that_loses_its_worker_again_comes_back_after_a_while(stage: Stage) -> None:
    """R25: of the rows that a crashing step takes down with it, the others get away from it."""
    await stage.register(7, seen=1_000_000_000)
    await hold(stage, 7, count=20)
    assert await stage.reap(lease=QUICK) == (20, [7])
    assert {row[0] for row in await stage.ask("SELECT status FROM {schema}.instances")} == {0}
    await stage.ask("UPDATE {schema}.instances SET status = 2, worker = 7, crashes = 3")
    assert await stage.reap() == (20, [])
    rows = await stage.ask(
        "SELECT status, crashes, due_at - {clock} BETWEEN '-1 s' AND '8 s', due_at FROM {schema}.instances"
    )
    assert {row[:3] for row in rows} == {(1, 4, True)}
    assert len({row[3] for row in rows}) > 10, "each after a time of its own"


async def test_who_was_cut_off_with_the_reaper_gets_time_to_come_back(stage: Stage) -> None:
    """R25, R27: after an outage everybody is silent; and nobody declares itself dead."""
    await stage.register(7, seen=1_000_000_000)
    (claim,) = await hold(stage, 7)
    assert await stage.reap(lease=QUICK, heard=False) == (0, [])
    assert await stage.reap(lease=QUICK, worker=7) == (0, [])
    await stage.ask("UPDATE {schema}.workers SET locked = true, seen_at = {clock}")
    for _ in range(2):
        assert await stage.reap(lease=1_000_000, grace=0, watched=False) == (0, [])
    assert await stage.ask(ALL) == [(7, False)]
    assert (await stage.row(claim[0], "status")) == (2,)
