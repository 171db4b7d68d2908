"""The plans of every hot statement at a million rows, with statistics fresh, absent and stale.

The rows are skewed as queues are: most of them wait for a later time on an urgent priority, are parked, or are executed
by somebody else. "Stale" is the worst that a long session meets: plans that were made while the tables were empty.
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
WATCHED = re.compile(r"(instances|finished|transitions)")

ME, OTHER, DEAD, ORPHAN = 7, 8, 9, 10
# Of 20 rows: 7 scheduled on an urgent priority, 6 parked, 5 executing, 2 ready; every 20th has a key.
LOAD = f"""
INSERT INTO {{schema}}.instances (due_at, inserted_at, updated_at, lane, worker, status, priority, step, key, state)
SELECT now() + CASE WHEN n % 20 < 7 AND n > 4000 THEN interval '1 day' ELSE interval '-1 s' END,
    now(), now(), 1 + n % 2,
    CASE WHEN n % 20 BETWEEN 13 AND 17 THEN
        CASE n % 2000 WHEN 13 THEN {ME} WHEN 14 THEN {DEAD} WHEN 15 THEN {ORPHAN} ELSE {OTHER} END
    END,
    CASE WHEN n % 20 < 7 THEN 1 WHEN n % 20 < 13 THEN 3 WHEN n % 20 < 18 THEN 2 ELSE 0 END,
    CASE WHEN n % 20 < 7 THEN -100 ELSE 0 END, 's', CASE WHEN n % 20 = 0 THEN 'k' || n END, '{{}}'
FROM generate_series(1, {ROWS}) n;
INSERT INTO {{schema}}.finished (id, rev, inserted_at, finished_at, expires_at, bucket, lane, attempt, crashes, status,
    priority, step, key, state)
SELECT 2 * {ROWS} + n, 3, now(), now(), CASE WHEN n % 100 = 1 THEN now() ELSE now() + interval '1 day' END,
    CASE WHEN n % 2 = 0 THEN (now() + interval '1 day')::date ELSE 'infinity' END,
    1, 0, 0, 6, 0, 's', CASE WHEN n % 20 = 0 THEN 'f' || n % 10000 END, '{{}}'
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
    batch = [
        outcome(id_, rev, n % 3, kind=[0, 1, 3][n % 3], delay=5.0) for n, (id_, rev) in enumerate(mine[: 3 * BATCH])
    ]
    ids = [id_ for id_, _ in mine[:BATCH]] + [2 * ROWS + n for n in range(1, BATCH + 1)]
    rows = [{"lane": 1 + n % 2, "step": "s", "state": {}} | ({"key": f"new{n}"} if n % 2 else {}) for n in range(BATCH)]
    claims = [{"id": id_, "rev": rev} for id_, rev in mine[:BATCH]]
    reap = {"worker": 0, "heard": True, "watched": True, "lease": 0.003, "grace": 1.0, "batch": BATCH, "keep": True}
    id_, key = {"finished_id", "instances_pkey"}, {"finished_key", "instances_key"}
    return [
        Call("claim of one lane", "claiming/claim", {"worker": ME, "wants": encode([wants[0] | {"solo": True}])},
             {"instances_ready", "instances_pkey"}, 2 * BATCH, 3000),
        Call("claim of two lanes", "claiming/claim", {"worker": ME, "wants": encode(wants)},
             {"instances_ready", "instances_pkey"}, 5 * BATCH, 3000),
        Call("commit of all kinds", "committing/commit", {"worker": ME, "outcomes": encode(batch), "wake": ["q"]},
             {"instances_pkey"}, 3 * BATCH, 7000),
        Call("locate", "committing/locate", {"ids": encode(ids)}, id_, 2 * BATCH, 5000),
        Call("release", "claiming/release", {"worker": ME, "claims": encode(claims)}, {"instances_pkey"}, BATCH, 3000),
        Call("mine", "claiming/mine", {"worker": ME}, {"instances_claims"}, 500, 1200),
        Call("promote", "timing/promote", {"batch": BATCH}, {"instances_scheduled", "instances_pkey"}, 3 * BATCH, 4000),
        Call("reap", "workers/reap", reap, {"instances_claims", "instances_pkey"}, 5 * BATCH, 8000,
             {"instances_claims"}),
        Call("heartbeat", "workers/heartbeat", {"worker": ME, "locked": False, "lanes": [1]}, set(), 0, 30),
        Call("insert", "inserting/insert", {"rows": encode(rows), "notify": True, "soon": 5.0}, set(), 0, 3000),
        Call("holders", "inserting/holders", {"keys": encode([f"k{20 * n}" for n in range(1, BATCH + 1)])},
             {"instances_key"}, BATCH, 800),
        Call("by id, live", "reading/by_id", {"id": ROWS // 2}, id_, 1, 40),
        Call("by id, ended", "reading/by_id", {"id": 2 * ROWS + 500}, id_, 1, 40),
        Call("by key, live", "reading/by_key", {"key": f"k{ROWS // 2}"}, key, 1, 40),
        Call("by key, ended", "reading/by_key", {"key": "f500"}, key, 10, 60),
        Call("history", "reading/history", {"id": 2 * ROWS + 500}, {"transitions_instance", "finished_id"}, 2, 60),
        Call("first page", "reading/page", none | {"before": None, "limit": 50}, id_, 110, 600),
        Call("page in the middle", "reading/page", none | {"before": ROWS // 2, "limit": 50}, id_, 110, 600),
        Call("sweep", "pruning/sweep", {"batch": BATCH},
             {"finished_swept_expires", "finished_default_expires", "transitions_instance"}, 4 * BATCH, 5000),
    ]  # fmt: skip


# What the worker runs also behind a transaction pooler, where nothing can be set for the session.
POOLED = {
    "claiming/claim",
    "claiming/release",
    "committing/commit",
    "timing/promote",
    "claiming/mine",
    "workers/heartbeat",
}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def index_of(name: str) -> str:
    """An index by the name that the migration gives it; a partition's are named after their columns."""
    part = re.fullmatch(r"(finished|transitions)_\w+?_(instance_id|key_id|id)_idx", name)
    names = {"instance_id": "transitions_instance", "key_id": "finished_key", "id": "finished_id"}
    return names[part[2]] if part else name


def faults(call: Call, plan: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a plan that has run."""
    touched = 0.0
    for node in nodes(plan):
        kind, loops = node["Node Type"], node["Actual Loops"]
        if "Sort" in kind and node["Actual Rows"] * loops > 2 * BATCH:
            yield f"{kind} of {node['Actual Rows']} rows"
        if "Scan" not in kind or not WATCHED.match(node.get("Relation Name", "")) or not loops:
            continue
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        touched += (node["Actual Rows"] + removed) * loops
        if kind == "Tid Scan":
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
            if name != "queues/listen":
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
    for worker, seen in ((ME, -3600.0), (OTHER, -3600.0), (DEAD, 3600.0)):
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
    for call in calls([(1, 1)]):
        await stale.explain(call)  # so the plan is made, and kept
    await stage.ask("SET statement_timeout = 0")
    await stage.ask(LOAD)
    mine = await stage.run("claiming/mine", worker=ME)
    planned = calls(sorted((id_, rev) for id_, rev in mine))
    found: list[str] = []

    async def check(state: str, planner: Planner, only: set[str] | None = None) -> None:
        for call in planned:
            if only is None or call.statement in only:
                try:
                    plan = await planner.explain(call)
                except Exception as error:
                    found.append(f"{state}: {call.label}: {error}")
                else:
                    found.extend(f"{state}: {call.label}: {fault}" for fault in faults(call, plan))

    await check("stale", stale)
    await check("absent", await open_planner(stage, connect, True))
    await stage.ask("ANALYZE {schema}.instances")
    await stage.ask("ANALYZE {schema}.finished")
    await stage.ask("ANALYZE {schema}.transitions")
    await check("fresh", await open_planner(stage, connect, True))
    await check("pooled", await open_planner(stage, connect, None), POOLED)
    assert found == []


async def test_plans_of_a_new_schema(stage: Stage, connect: Callable[[], Awaitable[Connection]]) -> None:
    """The same shapes where nothing has ever been analyzed: the first seconds of an installation."""
    await stage.lane("q", "a")
    await stage.lane("q", "b")
    await stage.run("pruning/ensure")
    planner = await open_planner(stage, connect, True)
    found = [
        f"{call.label}: {fault}" for call in calls([(1, 1)]) for fault in faults(call, await planner.explain(call))
    ]
    assert found == []


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
    call = Call("insert", "inserting/insert", {"rows": encode(rows), "notify": True, "soon": 5.0}, set(), 0, 0)
    plan = await (await open_planner(stage, connect, True)).explain(call)
    compared = sum(node.get("Rows Removed by Join Filter", 0) for node in nodes(plan))
    assert compared <= len(rows)
