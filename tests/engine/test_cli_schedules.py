"""``gen-durable schedule`` against a database: what it shows, what it does, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from engine_support import Build

from gen_durable import Engine, job
from gen_durable.cli.app import root


@job
async def tick(n: int = 0) -> None: ...


@pytest.fixture
async def client(build: Build) -> Any:
    async with build(tick, queues={}) as engine:
        await engine.schedule("daily-report", "0 9 * * *", tick.bind(n=1), tz="Europe/Paris")
        await engine.schedule("sync", None, tick.bind(), every=timedelta(minutes=90), catch_up="all")
        yield engine


@pytest.fixture
def call(client: Engine, database_url: str) -> Callable[..., Any]:
    """Runs ``gen-durable schedule ...`` on the test's schema; answers with what it wrote."""
    schema = client.settings.schema
    env = {**os.environ, "GEN_DURABLE_DATABASE_URL": database_url}

    async def run(*args: str, code: int = 0) -> Result:
        arguments = ["schedule", args[0], "--schema", schema, *args[1:]]
        done = await asyncio.to_thread(CliRunner(env=env).invoke, root, arguments, prog_name="gen-durable")
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        return done

    return run


async def test_the_list(client: Engine, call: Callable[..., Any]) -> None:
    lines = [line.split("  ") for line in (await call("list")).stdout.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["NAME", "TIMES", "TZ", "CATCH-UP", "MACHINE", "QUEUE", "LAST", "NEXT"]
    assert cells[1][:7] == ["daily-report", "0 9 * * *", "Europe/Paris", "last", "tick", "default", "-"]
    assert cells[2][:7] == ["sync", "every 5400s", "UTC", "all", "tick", "default", "-"]
    daily, sync = json.loads((await call("list", "--json")).stdout)["schedules"]
    assert (daily["name"], daily["cron"], daily["every"], daily["state"]) == (
        "daily-report",
        "0 9 * * *",
        None,
        {"n": 1},
    )
    assert datetime.fromisoformat(daily["next_at"]) == (await client.schedules())[0].next_at
    assert (sync["cron"], sync["paused_at"], sync["last_at"]) == (None, None, None)


async def test_pause_and_resume(client: Engine, call: Callable[..., Any]) -> None:
    assert (await call("pause", "sync")).stdout == "sync: paused\n"
    assert [one.paused for one in await client.schedules()] == [False, True]
    assert (await call("list")).stdout.splitlines()[2].split()[-1] == "paused"
    assert (await call("resume", "sync")).stdout == "sync: runs\n"
    assert [one.paused for one in await client.schedules()] == [False, False]


async def test_trigger(client: Engine, call: Callable[..., Any]) -> None:
    plain = int((await call("trigger", "daily-report")).stdout)
    assert (await client.get(plain)).state == {"n": 1}
    shown = json.loads((await call("trigger", "daily-report", "--json")).stdout)
    assert shown == {"id": plain + 1, "machine": "tick", "schedule": "daily-report"}


async def test_backfill(client: Engine, call: Callable[..., Any]) -> None:
    span = ("--since", "2026-03-28T00:00:00+01:00", "--until", "2026-04-01T00:00:00+02:00")
    assert (await call("backfill", "daily-report", *span)).stdout == "daily-report: 4 started\n"
    shown = json.loads((await call("backfill", "daily-report", *span, "--json", "--priority", "5")).stdout)
    assert shown == {"schedule": "daily-report", "started": 0}
    due = sorted(one.due_at for one in (await client.list()).items if one.due_at is not None)
    assert due[1] == datetime(2026, 3, 29, 7, tzinfo=UTC)
    for wrong, message in [("2026-03-28T00:00:00", "no time zone"), ("today", "ISO 8601")]:
        done = await call("backfill", "daily-report", "--since", wrong, "--until", span[3], code=2)
        assert message in done.stderr
    assert "Missing option" in (await call("backfill", "daily-report", *span[:2], code=2)).stderr
    turned = ("--since", span[3], "--until", span[1])
    assert "the earlier one first" in (await call("backfill", "daily-report", *turned, code=2)).stderr


async def test_remove(client: Engine, call: Callable[..., Any]) -> None:
    assert (await call("remove", "sync")).stdout == "sync: removed\n"
    assert [one.name for one in await client.schedules()] == ["daily-report"]
    await call("remove", "daily-report")
    done = await call("list")
    assert (done.stdout, "there are no schedules" in done.stderr) == ("", True)


@pytest.mark.parametrize("command", ["pause", "resume", "trigger", "remove"])
async def test_a_name_that_is_not_there_fails(call: Callable[..., Any], command: str) -> None:
    assert "there is no schedule 'nope'" in (await call(command, "nope", code=1)).stderr
