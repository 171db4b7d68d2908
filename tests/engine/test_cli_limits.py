"""``gen-durable limits`` and ``why`` against a database: what they show, what they do, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from engine_support import Build

from gen_durable import Engine, Rate, job
from gen_durable.cli.app import root


@job(concurrency_key=("tenant", 7))
async def sync() -> None: ...


@pytest.fixture
async def client(build: Build) -> Any:
    limits: dict[str, Any] = {"concurrency_limits": {"tenant": 2}, "rate_limits": {"api": Rate(100, per=60, burst=20)}}
    async with build(sync, queues={}, **limits) as engine:
        yield engine


@pytest.fixture
def call(client: Engine, database_url: str) -> Callable[..., Any]:
    """Runs ``gen-durable ...`` on the test's schema; answers with what it wrote."""
    env = {**os.environ, "GEN_DURABLE_DATABASE_URL": database_url}

    async def run(*args: str, code: int = 0) -> Result:
        arguments = [*args, "--schema", client.settings.schema]
        done = await asyncio.to_thread(CliRunner(env=env).invoke, root, arguments, prog_name="gen-durable")
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        return done

    return run


async def test_the_list_and_what_is_set(client: Engine, call: Callable[..., Any]) -> None:
    """Section 10: for the whole cluster, without a restart."""
    await client.insert(sync.bind())
    lines = [line.split() for line in (await call("limits")).stdout.splitlines()]
    assert lines == [
        ["KIND", "NAME", "LIMIT", "BURST", "LINES", "HOLDING", "WAITING"],
        ["concurrency", "tenant", "2", "-", "1", "0", "1"],
        ["rate", "api", "100", "in", "60s", "20", "0", "0", "0"],
    ]
    assert (await call("limits", "set", "tenant", "--concurrency", "5")).stdout == "tenant: set\n"
    assert (await call("limits", "set", "tenant", "--concurrency", "5")).stdout == "tenant: nothing to change\n"
    await call("limits", "set", "api", "--rate", "7.5", "--per", "1m", "--burst", "8")
    await call("limits", "set", "sms", "--rate", "3")
    await call("limits", "set", "nowhere", "--queue-cap", "9", code=2)
    found = {one["name"]: one for one in json.loads((await call("limits", "--json")).stdout)["limits"]}
    assert {name: (one["limit"], one["per"], one["burst"]) for name, one in found.items()} == {
        "tenant": (5, None, None),
        "api": (7.5, 60.0, 8),
        "sms": (3, 1.0, 3),
    }
    assert (await call("limits", "set", "tenant", "--concurrency", "none")).stdout == "tenant: taken away\n"


async def test_a_cap(build: Build, client: Engine, call: Callable[..., Any]) -> None:
    async with build():
        assert (await call("limits", "set", "default", "--queue-cap", "9")).stdout == "default: set\n"
        (cap,) = [one for one in await client.limits() if one.kind == "queue"]
        assert (cap.name, cap.limit) == ("default", 9)
        assert (await call("limits", "set", "default", "--queue-cap", "none")).stdout == "default: taken away\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tenant"], "give one of --concurrency, --rate and --queue-cap"),
        (["tenant", "--rate", "1", "--concurrency", "1"], "give one of"),
        (["tenant", "--concurrency", "1", "--per", "2"], "belong to --rate"),
        (["tenant", "--concurrency", "0"], "give a whole number from 1, or none"),
        (["tenant", "--rate", "0"], "must be above 0"),
    ],
)
def test_what_is_refused(args: list[str], message: str) -> None:
    """R24"""
    done = CliRunner().invoke(root, ["limits", "set", *args], prog_name="gen-durable")
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


async def test_why(client: Engine, call: Callable[..., Any]) -> None:
    """Section 12"""
    handle = await client.insert(sync.bind(), key="sync:7")
    lines = dict(line.split("  ", 1) for line in (await call("why", "sync:7")).stdout.splitlines())
    told = {name: text.strip() for name, text in lines.items()}
    assert told == {
        "id": str(handle.id),
        "status": "blocked",
        "why": "the concurrency key 'tenant', partition '7' lets 2 run at once; nobody does, and a worker is to bring "
        "it forward; 0 are before it in the line; no worker lives",
        "limit": "concurrency tenant, partition 7: 2",
        "holding": "0",
        "ahead": "0",
    }
    found = json.loads((await call("why", str(handle.id), "--json")).stdout)
    assert (found["status"], found["limit"]["name"], found["ahead"]) == ("blocked", "tenant", 0)
    await call("why", "nobody", code=1)
