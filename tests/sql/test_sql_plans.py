"""The plans of every hot statement at a million rows, with statistics fresh, absent and stale.

The rows are skewed as queues are: most of them wait for a later time on an urgent priority, are parked, or are executed
by somebody else; a fifth of them are children of one parent. "Stale" is the worst that a long session meets: plans that
were made while the tables were empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sql_stage import Connection, Stage, encode, outcome

from gen_durable._store.connection import set_up

pytestmark = [pytest.mark.explain, pytest.mark.timeout(300)]

ROWS = 1_000_000
ENDED = 100_000
BATCH = 100
WATCHED = re.compile(r"(instances|finished|transitions|signals)")
BIG = 31  # waits for two hundred thousand children

ME, OTHER, DEAD, ORPHAN, HOLDER = 7, 8, 9, 10, 11  # HOLDER's claims hold keys for which others wait
# Of 20 rows: 7 scheduled on an urgent priority, 4 await a signal and 2 children, 5 executing, 2 ready; every 20th has a
# key, and all that are 3 modulo 5, among them the claims of ME, are BIG's.
LOAD = f"""
INSERT INTO {{schema}}.instances (due_at, inserted_at, updated_at, lane, worker, status, priority, step, key, scope,
    state, inbox, awaits, parent_id, parent_spawn, spawn, children_left)
SELECT
    CASE WHEN n % 20 BETWEEN 7 AND 12 AND n > 4000 AND n % 3 > 0 THEN 'infinity'
        ELSE now() + CASE WHEN n % 20 < 13 AND n > 4000 THEN interval '1 day' ELSE interval '-1 s' END
    END,
    now(), now(), 1 + n % 2,
    CASE WHEN n % 20 BETWEEN 13 AND 17 THEN
        CASE n % 2000 WHEN 13 THEN {ME} WHEN 14 THEN {DEAD} WHEN 15 THEN {ORPHAN} ELSE {OTHER} END
    END,
    CASE WHEN n % 20 < 7 THEN 1 WHEN n % 20 < 11 THEN 3 WHEN n % 20 < 13 THEN 4 WHEN n % 20 < 18 THEN 2 ELSE 0 END,
    CASE WHEN n % 20 < 7 THEN -100 ELSE 0 END, 's',
    CASE WHEN n % 20 = 0 THEN 'k' || n WHEN n % 20 = 18 AND n < 100000 THEN 'loose' END,
    CASE WHEN n % 20 = 18 THEN 0 END, '{{}}',
    CASE WHEN n % 20 BETWEEN 7 AND 10 OR n % 2000 = 13 OR n % 20 = 19 THEN 2 END,
    CASE WHEN n % 20 BETWEEN 7 AND 10 OR n % 20 = 19 THEN ARRAY['go'] END,
    CASE WHEN n % 5 = 3 THEN {BIG} END, CASE WHEN n % 5 = 3 THEN 1 END,
    CASE WHEN n % 20 BETWEEN 11 AND 12 THEN 1 END, CASE WHEN n % 20 BETWEEN 11 AND 12 THEN {ROWS // 5} END
FROM generate_series(1, {ROWS}) n;
INSERT INTO {{schema}}.instances (id, due_at, inserted_at, updated_at, lane, worker, status, step, gate, line, state)
SELECT 3 * {ROWS} + n, now(), now(), now(), 1,
    CASE WHEN n <= {BATCH} THEN {HOLDER} END, CASE WHEN n <= {BATCH} THEN 2 ELSE 5 END, 's',
    'cg' || n % {2 * BATCH}, 'cg' || n % {2 * BATCH}, '{{}}'
FROM generate_series(1, {ROWS // 10}) n;
INSERT INTO {{schema}}.instances (id, due_at, inserted_at, updated_at, lane, status, step, key, scope, state)
SELECT 2 * {ROWS} + n, CASE WHEN n % 100 = 1 THEN now() ELSE now() + interval '1 day' END, now(), now(), 1, 9, 's',
    'f' || n, 1 << 6, '{{}}'
FROM generate_series(1, {ENDED}) n;
INSERT INTO {{schema}}.signals (instance_id, sent_at, name, payload, dedup_key)
SELECT i.id, now(), 'other', '1', CASE WHEN i.id % 3 = 0 THEN 'd' || s END
FROM {{schema}}.instances i CROSS JOIN generate_series(1, 2) s WHERE i.inbox IS NOT NULL;
INSERT INTO {{schema}}.finished (id, rev, inserted_at, finished_at, expires_at, bucket, lane, attempt, crashes, status,
    priority, step, key, state, parent_id, parent_spawn)
SELECT 2 * {ROWS} + n, 3, now(), now(), CASE WHEN n % 100 = 1 THEN now() ELSE now() + interval '1 day' END,
    CASE WHEN n % 2 = 0 THEN (now() + interval '1 day')::date ELSE 'infinity' END,
    1, 0, 0, CASE WHEN n % 10 = 7 THEN 7 ELSE 6 END, 0, 's', CASE WHEN n % 20 = 0 THEN 'f' || n % 10000 END, '{{}}',
    CASE WHEN n % 4 = 1 THEN {ROWS // 2} + n WHEN n % 4 = 3 THEN {BIG} END, CASE WHEN n % 2 = 1 THEN 1 END
FROM generate_series(1, {ENDED}) n;
INSERT INTO {{schema}}.transitions (instance_id, seq, at, attempt, outcome, step)
SELECT 2 * {ROWS} + n, 1, now(), 0, 0, 's' FROM generate_series(1, {ENDED}) n
"""


@dataclass(frozen=True)
class Call:
    """One execution: which indexes it may walk, how many rows of the big tables and how many pages it may touch."""

    label: str
    statement: str
    values: dict[str, Any]
    indexes: set[str]
    rows: int
    pages: int
    whole: set[str] = field(default_factory=set)  # indexes that are walked from an end, to a LIMIT


def calls(mine: list[tuple[int, int]]) -> list[Call]:
    wants = [{"lane": lane, "pool": 0, "room": BATCH, "solo": False} for lane in (1, 2)]
    none = dict.fromkeys(["machine", "queue", "statuses", "key_prefix"])
    signals = range(1, 5 * BATCH)
    batch = [
        outcome(id_, rev, n % 5, kind=[0, 0, 3, 7, 8][n % 5], delay=5.0, signals=[signals[n], signals[n] + 1])
        for n, (id_, rev) in enumerate(mine[: 3 * BATCH])
    ]
    first = sorted({BIG, *(id_ for id_, _ in mine[: 3 * BATCH])})
    ids = [id_ for id_, _ in mine[:BATCH]] + [2 * ROWS + n for n in range(1, BATCH + 1)]
    plain = {"states": encode([{}] * BATCH), "step": "s", "priority": 0, "notify": True}
    plain |= {"parent_id": None, "parent_spawn": None}
    rows = [{"lane": 1 + n % 2, "step": "s", "state": {}} | ({"key": f"new{n}"} if n % 2 else {}) for n in range(BATCH)]
    claims = [{"id": id_, "rev": rev} for id_, rev in mine[:BATCH]]
    reap = {"worker": 0, "heard": True, "watched": True, "lease": 0.003, "grace": 1.0, "batch": BATCH, "keep": True}
    signal = {
        "id": None,
        "key": None,
        "name": "go",
        "payload": "1",
        "dedup": "d9",
        "notify": True,
        "worker": ME,
        "lanes": [1],
    }
    alone = {"id": mine[0][0], "rev": mine[0][1], "worker": ME, "mark": None, "state": None, "ran": "one", "tried": 0,
             "took": 0.1}  # fmt: skip
    places = [{"lane": lane, "pool": 0, "room": BATCH} for lane in (1, 2)]
    ends = {"worker": ME, "pools": encode(places), "most": 1000, "report": False}
    family = {"instances_parent", "finished_parent"}
    id_, key = {"finished_id", "instances_pkey"}, {"finished_key", "instances_key"}
    return [
        Call("claim of one lane", "claiming/claim", {"worker": ME, "wants": encode([wants[0] | {"solo": True}])},
             {"instances_ready", "instances_pkey", "signals_pkey"}, 4 * BATCH, 4000),
        Call("claim of two lanes", "claiming/claim", {"worker": ME, "wants": encode(wants)},
             {"instances_ready", "instances_pkey", "signals_pkey"}, 7 * BATCH, 4000),
        Call("commit of all kinds", "committing/commit",
             {"worker": ME, "outcomes": encode(batch), "first": encode(first), "wake": ["q"]},
             {"instances_pkey", "signals_pkey"}, 9 * BATCH, 20000),
        Call("ends", "committing/end", ends | {"outcomes": encode([outcome(*claim, 2) for claim in mine[:BATCH]])},
             {"instances_pkey", "signals_pkey"}, 3 * BATCH, 4000),
        Call("ends that hand slots on", "committing/end",
             ends | {"worker": HOLDER, "outcomes": encode([outcome(3 * ROWS + n, 0, 2) for n in range(1, BATCH + 1)])},
             {"instances_pkey", "instances_line"}, 5 * BATCH, 8000),
        Call("ends of children", "committing/end_joined",
             {"worker": ME, "outcomes": encode([outcome(*claim, 2) for claim in mine[:BATCH]]), "first": encode([BIG])},
             {"instances_pkey", "signals_pkey"}, 4 * BATCH, 4000),
        Call("busy", "committing/busy", {"ids": encode(ids)}, {"instances_pkey"}, 4 * BATCH, 3000),
        Call("end alone", "committing/end_alone", alone | {"result": "1", "keep": 60.0}, {"instances_pkey"}, 1, 60),
        Call("go on alone", "committing/go_on_alone",
             alone | {"step": "two", "error": None, "kind": 0, "history": 1}, {"instances_pkey"}, 1, 60),
        Call("locate", "committing/locate", {"ids": encode(ids)}, id_, 3 * BATCH, 5000),
        Call("stands", "committing/stands", {"id": ids[0], "rev": 0, "worker": ME}, {"instances_pkey"}, 1, 60),
        Call("release", "claiming/release", {"worker": ME, "claims": encode(claims)}, {"instances_pkey"}, BATCH, 3000),
        Call("mine", "claiming/mine", {"worker": ME}, {"instances_claims"}, 500, 1200),
        Call("promote", "timing/promote", {"batch": BATCH}, {"instances_timers", "instances_pkey"}, 3 * BATCH, 4000),
        Call("reap", "workers/reap", reap, {"instances_claims", "instances_pkey"}, 5 * BATCH, 8000,
             {"instances_claims"}),
        Call("heartbeat", "workers/heartbeat", {"worker": ME, "locked": False, "lanes": [1]}, set(), 0, 30),
        Call("insert", "inserting/insert", {"rows": encode(rows), "notify": True, "soon": 5.0, "worker": ME}, set(), 0,
             3000),
        Call("insert, plain", "inserting/plain", plain | {"lane": 1, "worker": ME}, set(), 0, 3000),
        Call("holders", "inserting/holders", {"keys": encode([f"k{20 * n}" for n in range(1, BATCH + 1)])},
             {"instances_key"}, BATCH, 800),
        Call("by id, live", "reading/by_id", {"id": ROWS // 2}, id_, 1, 40),
        Call("by id, ended", "reading/by_id", {"id": 2 * ROWS + 500}, id_, 2, 40),
        Call("by key, live", "reading/by_key", {"key": f"k{ROWS // 2}"}, key, 1, 40),
        Call("by key, ended", "reading/by_key", {"key": "f500"}, key, 11, 60),
        Call("history", "reading/history", {"id": 2 * ROWS + 500}, {"transitions_instance", "finished_id"}, 2, 60),
        Call("first page", "reading/page", none | {"before": None, "limit": 50}, id_, 110, 600),
        Call("page in the middle", "reading/page", none | {"before": ROWS // 2, "limit": 50}, id_, 110, 600),
        Call("sweep", "pruning/sweep", {"batch": BATCH},
             {"finished_swept_expires", "finished_default_expires", "transitions_instance", "instances_pkey",
              "instances_reserved"}, 8 * BATCH, 8000),
        Call("signal by id", "signalling/send", signal | {"id": 4007}, {"instances_pkey", "instances_key"}, 4,
             200),
        Call("signal by key", "signalling/send", signal | {"key": f"k{ROWS // 2}"}, {"instances_pkey", "instances_key"},
             4, 200),
        Call("signal by loose key", "signalling/send", signal | {"key": "loose"}, {"instances_pkey", "instances_key"},
             4, 200),
        Call("children of a small spawn", "joining/children", {"parent": ROWS // 2 + 101, "spawn": 1}, family, 2, 60),
        Call("descend", "steering/descend", {"parents": encode(list(range(BIG + 1, BIG + BATCH))), "spawn": None},
             family, 1, 600),
        Call("cancel", "steering/cancel", {"ids": encode([id_ for id_, _ in mine[:BATCH]]), "reason": "{}",
             "keep": True}, {"instances_pkey", "signals_pkey"}, 5 * BATCH, 9000),
        Call("retry", "steering/retry", {"id": 2 * ROWS + 507}, {"finished_id", "instances_pkey"}, 5, 100),
        Call("watch", "reading/watch", {"id": ROWS // 2}, {"instances_pkey"}, 1, 30),
        Call("replace", "inserting/replace", {"key": f"k{ROWS // 2}", "row": encode([rows[0]]), "notify": True,
             "soon": 5.0}, {"instances_key", "instances_pkey"}, 3, 80),
        Call("ids", "inserting/ids", {"count": BATCH}, set(), 0, 300),
        Call("resolve", "committing/noted", {"worker": ME, "claims": encode(claims)}, {"transitions_instance"}, BATCH,
             1500),
    ]  # fmt: skip


# What the worker runs also behind a transaction pooler, where nothing can be set for the session.
POOLED = {
    "claiming/claim",
    "claiming/release",
    "committing/commit",
    "committing/end",
    "committing/end_joined",
    "timing/promote",
    "claiming/mine",
    "workers/heartbeat",
}
# What the client sends, on sessions that leave the planner more ways.
CLIENT = {
    "inserting/insert",
    "inserting/plain",
    "inserting/holders",
    "inserting/replace",
    "inserting/ids",
    "signalling/send",
    "joining/children",
    "steering/descend",
    "steering/cancel",
    "steering/retry",
    "reading/by_id",
    "reading/by_key",
    "reading/watch",
}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def index_of(name: str) -> str:
    """An index by the name that the migration gives it; a partition's are named after their columns."""
    part = re.fullmatch(r"(finished|transitions)_\w+?_(instance_id|key_id|id|parent_id_parent_spawn_id)_idx", name)
    names = {
        "instance_id": "transitions_instance",
        "key_id": "finished_key",
        "id": "finished_id",
        "parent_id_parent_spawn_id": "finished_parent",
    }
    return names[part[2]] if part else name


def faults(call: Call, plan: dict[str, Any], *, free: bool = False) -> Iterator[str]:
    """What is wrong with a plan that has run; in a ``free`` session any way is right that touches few rows."""
    touched = 0.0
    for node in nodes(plan):
        kind, loops = node["Node Type"], node["Actual Loops"]
        if "Sort" in kind and node["Actual Rows"] * loops > 2 * BATCH:
            yield f"{kind} of {node['Actual Rows']} rows"
        if "Scan" not in kind or not WATCHED.match(node.get("Relation Name", "")) or not loops:
            continue
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        touched += (node["Actual Rows"] + removed) * loops
        if kind == "Tid Scan" or free:
            continue
        index = index_of(node.get("Index Name", "none"))
        if kind not in ("Index Scan", "Index Only Scan") or index not in call.indexes:
            yield f"{kind} of {node['Relation Name']} by {index}"
        elif "Index Cond" not in node and index not in call.whole:
            yield f"a walk over the whole of {index}"
    pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    if touched > call.rows:
        yield f"{touched:.0f} rows touched, more than {call.rows}"
    if pages > call.pages:
        yield f"{pages} pages touched, more than {call.pages}"


class Planner:
    """A session with every statement prepared, as the engine's are: one generic plan for all parameters."""

    def __init__(self, stage: Stage, connection: Connection) -> None:
        self.stage = stage
        self.connection = connection

    async def prepare(self) -> None:
        for name, statement in self.stage.sql.items():
            if name not in ("queues/listen", "testing/advance"):  # that one needs a schema for tests
                await self.connection.execute(f'PREPARE "{name}" AS '.encode() + statement.text, prepare=False)

    async def explain(self, call: Call) -> dict[str, Any]:
        """The plan of one execution, whose effect is undone."""
        given = [literal(call.values[name]) for name in self.stage.sql[call.statement].parameters]
        text = f'EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE "{call.statement}"({", ".join(given)})'
        async with self.connection.transaction(force_rollback=True):
            await self.connection.execute("SET LOCAL statement_timeout = '5s'", prepare=False)
            cursor = await self.connection.execute(text.encode(), prepare=False)
            row = await cursor.fetchone()
        assert row is not None
        explained = row[0] if isinstance(row[0], list) else json.loads(row[0])
        plan: dict[str, Any] = explained[0]["Plan"]
        return plan


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return "'{" + ",".join(str(item) for item in value) + "}'"
    return "'" + str(value).replace("'", "''") + "'"


async def open_planner(stage: Stage, connect: Callable[[], Awaitable[Connection]], steady: bool | None) -> Planner:
    connection = await connect()
    if steady is not None:
        await set_up(connection, steady=steady)
    connection.prepare_threshold = None  # the driver forgets what it did not prepare itself at each ROLLBACK
    planner = Planner(stage, connection)
    await planner.prepare()
    return planner


async def empty_schema(stage: Stage) -> None:
    await stage.lane("q", "a")
    await stage.lane("q", "b")
    await stage.run("pruning/ensure")
    for worker, seen in ((ME, -3600.0), (OTHER, -3600.0), (HOLDER, -3600.0), (DEAD, 3600.0)):
        await stage.register(worker, seen=seen)
    tables = await stage.ask(
        "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = '{schema}'::regnamespace AND relkind = 'r'"
    )
    for (table,) in tables:
        await stage.ask(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        await stage.ask(f"VACUUM ANALYZE {table}")


async def test_plans_at_a_million_rows(stage: Stage, connect: Callable[[], Awaitable[Connection]]) -> None:
    """R17: what is not due, parked, executing or ended costs a claim nothing; no plan depends on statistics."""
    await empty_schema(stage)
    stale = await open_planner(stage, connect, True)
    client = await open_planner(stage, connect, False)
    for call in calls([(1, 1)]):
        await stale.explain(call)  # so the plan is made, and kept
        await client.explain(call)
    await stage.ask("SET statement_timeout = 0")
    await stage.ask(LOAD)
    mine = await stage.run("claiming/mine", worker=ME)
    planned = calls(sorted((id_, rev) for id_, rev in mine))
    found: list[str] = []

    async def check(state: str, planner: Planner, only: set[str] | None = None, *, free: bool = False) -> None:
        for call in planned:
            if only is None or call.statement in only:
                try:
                    plan = await planner.explain(call)
                except Exception as error:
                    found.append(f"{state}: {call.label}: {error}")
                else:
                    found.extend(f"{state}: {call.label}: {fault}" for fault in faults(call, plan, free=free))

    await check("stale", stale)
    await check("stale client", client, CLIENT, free=True)
    await check("absent", await open_planner(stage, connect, True))
    await check("absent client", await open_planner(stage, connect, False), CLIENT, free=True)
    await stage.ask("ANALYZE {schema}.instances")
    await stage.ask("ANALYZE {schema}.finished")
    await stage.ask("ANALYZE {schema}.transitions")
    await stage.ask("ANALYZE {schema}.signals")
    await check("fresh", await open_planner(stage, connect, True))
    await check("fresh client", await open_planner(stage, connect, False), CLIENT, free=True)
    await check("pooled", await open_planner(stage, connect, None), POOLED)
    assert not found, "\n".join(found)


async def test_plans_of_a_new_schema(stage: Stage, connect: Callable[[], Awaitable[Connection]]) -> None:
    """The same shapes where nothing has ever been analyzed: the first seconds of an installation."""
    await stage.lane("q", "a")
    await stage.lane("q", "b")
    await stage.run("pruning/ensure")
    planner = await open_planner(stage, connect, True)
    found = [
        f"{call.label}: {fault}" for call in calls([(1, 1)]) for fault in faults(call, await planner.explain(call))
    ]
    assert not found, "\n".join(found)


async def test_what_others_execute_costs_a_second_reaper_nothing(
    stage: Stage, connect: Callable[[], Awaitable[Connection]]
) -> None:
    """A worker looks every second: while another does it, the look must not walk over all claims."""
    lane = await stage.lane()
    await stage.register(ME, seen=-3600.0)
    await stage.ask(
        "INSERT INTO {schema}.instances (due_at, inserted_at, updated_at, lane, worker, status, step, state) "
        "SELECT now(), now(), now(), %s, %s, 2, 's', '{{}}' FROM generate_series(1, 5000)".replace("{{}}", "{}"),
        lane,
        ME,
    )
    planner = await open_planner(stage, connect, True)
    other = await stage.connect()
    (reap,) = (call for call in calls([(1, 1)]) if call.label == "reap")
    async with other.transaction():
        await stage.reap(lease=0.003, on=other)
        plan = await planner.explain(reap)
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 60


async def test_an_insert_of_many_rows_compares_no_row_with_every_other(
    stage: Stage, connect: Callable[[], Awaitable[Connection]]
) -> None:
    """R15: a worker's session inserts children by thousands, and has no hash join for its answer."""
    lane = await stage.lane()
    rows = [{"lane": lane, "step": "s", "state": {}} for _ in range(500)]
    call = Call(
        "insert", "inserting/insert", {"rows": encode(rows), "notify": True, "soon": 5.0, "worker": None}, set(), 0, 0
    )
    plan = await (await open_planner(stage, connect, True)).explain(call)
    compared = sum(node.get("Rows Removed by Join Filter", 0) for node in nodes(plan))
    assert compared <= len(rows)
