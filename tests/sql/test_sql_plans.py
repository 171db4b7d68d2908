"""The plans of every hot statement at a million rows, with statistics fresh, absent and stale.

The rows and the calls are those of ``benchmarks.plans``, where they are looked at among more of them. "Stale" is the
worst that a long session meets: plans that were made while the tables were empty.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sql_stage import Connection, Stage, encode

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.plans.calls import CLIENT, Call, calls  # noqa: E402
from benchmarks.plans.planner import Planner, index_of, nodes  # noqa: E402
from benchmarks.plans.stock import BATCH, ME, Stock, lay  # noqa: E402

pytestmark = [pytest.mark.explain, pytest.mark.timeout(300)]

STOCK = Stock(mixed=1_000_000, ended=100_000)
WATCHED = re.compile(r"(instances|finished|transitions|signals)")

# What the worker runs also behind a transaction pooler, where nothing can be set for the session.
POOLED = {
    "claiming/claim",
    "claiming/left",
    "claiming/release",
    "committing/commit",
    "committing/end",
    "committing/end_joined",
    "timing/promote",
    "claiming/mine",
    "workers/heartbeat",
}


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


async def open_planner(stage: Stage, connect: Callable[[], Awaitable[Connection]], steady: bool | None) -> Planner:
    return await Planner.open(stage.sql, await connect(), steady=steady)


async def test_plans_at_a_million_rows(stage: Stage, connect: Callable[[], Awaitable[Connection]]) -> None:
    """R17: what is not due, parked, executing or ended costs a claim nothing; no plan depends on statistics."""
    await lay(stage.run, stage.ask)
    stale = await open_planner(stage, connect, True)
    client = await open_planner(stage, connect, False)
    for call in calls([(1, 1)], STOCK):
        await stale.explain(call)  # so the plan is made, and kept
        await client.explain(call)
    await stage.ask("SET statement_timeout = 0")
    for insertion in STOCK.insertions():
        await stage.ask(insertion)
    mine = await stage.run("claiming/mine", worker=ME)
    planned = calls(sorted((id_, rev) for id_, rev in mine), STOCK)
    found: list[str] = []

    async def check(state: str, planner: Planner, only: set[str] | None = None, *, free: bool = False) -> None:
        for call in planned:
            if only is None or call.statement in only:
                try:
                    plan = (await planner.explain(call))["Plan"]
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
        f"{call.label}: {fault}"
        for call in calls([(1, 1)], STOCK)
        for fault in faults(call, (await planner.explain(call))["Plan"])
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
    (reap,) = (call for call in calls([(1, 1)], STOCK) if call.label == "reap")
    async with other.transaction():
        await stage.reap(lease=0.003, on=other)
        plan = (await planner.explain(reap))["Plan"]
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
    plan = (await (await open_planner(stage, connect, True)).explain(call))["Plan"]
    compared = sum(node.get("Rows Removed by Join Filter", 0) for node in nodes(plan))
    assert compared <= len(rows)
