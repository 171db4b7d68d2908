"""``gen-durable worker --processes N``: real processes, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gen_durable import Engine, Machine
from gen_durable.cli.supervisor import Policy, Supervisor

pytestmark = pytest.mark.crash

APP = """
import asyncio, os, time
from pathlib import Path
from typing import Any
from gen_durable import Engine, job

@job
async def hold(gate: str) -> str:
    while not Path(gate).exists():
        await asyncio.sleep(0.02)
    return "through"

@job
async def block() -> None:
    time.sleep(600)

@job
async def quick(n: int) -> int:
    return n

engine = Engine(machines=[hold, block, quick], schema=os.environ["APP_SCHEMA"], queues={"default": 5})
"""


class Running:
    """A started supervisor, its log line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """Waits until ``count`` lines of the log (from its beginning) fit."""
        assert self.process.stderr is not None
        async with asyncio.timeout(30):
            while True:
                found = [match for line in self.lines if (match := re.search(pattern, line))]
                if len(found) >= count:
                    return found
                raw = await self.process.stderr.readline()
                assert raw, f"the log ended without {pattern!r}:\n" + "\n".join(self.lines)
                self.lines.append(raw.decode().rstrip())

    async def ended(self) -> int:
        """Reads the rest of the log and waits for the exit code."""
        assert self.process.stderr is not None
        async with asyncio.timeout(45):
            self.lines += (await self.process.stderr.read()).decode().splitlines()
            return await self.process.wait()


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(tmp_path: Path, database_url: str, migrated: str) -> AsyncIterator[Start]:
    (tmp_path / "app.py").write_text(APP)
    started: list[Running] = []

    async def begin(*args: str) -> Running:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gen_durable", "worker", "app:engine", *args),
            cwd=tmp_path,
            env={**os.environ, "GEN_DURABLE_DATABASE_URL": database_url, "APP_SCHEMA": migrated},
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(Running(process))
        return started[-1]

    yield begin
    for running in started:
        for match in filter(None, (re.search(r"started \(pid (\d+)\)", line) for line in running.lines)):
            if not gone(int(match[1])):
                os.kill(int(match[1]), signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            running.process.kill()
        await running.ended()


class Client(Engine):
    """Knows the same jobs, and runs nothing."""

    def bound(self, name: str, **fields: object) -> Machine:
        """An instance of one of the jobs, from its fields."""
        return next(spec for spec in self.settings.machines if spec.name == name).cls(**fields)


@pytest.fixture
async def engine(database_url: str, migrated: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setenv("APP_SCHEMA", migrated)
    scope: dict[str, Any] = {"__name__": "app"}
    exec(compile(APP, "app.py", "exec"), scope)
    jobs = [scope[name] for name in ("hold", "block", "quick")]
    client = Client(database_url, machines=jobs, schema=migrated, name=migrated, queues={"default": 5})
    async with client.client():
        yield client


async def executing(engine: Client, target: int) -> int:
    """Waits until an instance runs; the pid of its worker."""
    async with asyncio.timeout(30):
        while True:
            found = await engine.get(target)
            if found.status == "executing":
                return next(worker.pid for worker in await engine.workers() if worker.id == found.worker)
            await asyncio.sleep(0.05)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has too."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


async def all_gone(pids: list[int]) -> None:
    async with asyncio.timeout(30):
        while not all(gone(pid) for pid in pids):
            await asyncio.sleep(0.05)


async def test_a_killed_child_is_replaced_and_its_work_goes_on(start: Start, engine: Client, tmp_path: Path) -> None:
    """R25: what the killed one held runs again."""
    gate = tmp_path / "gate"
    running = await start("--processes", "2")
    await running.line(r"worker \d+ runs", 2)
    held = await engine.insert(engine.bound("hold", gate=str(gate)))
    pid = await executing(engine, held.id)
    os.kill(pid, signal.SIGKILL)
    await running.line(rf"\(pid {pid}\) was ended by SIGKILL; another starts now")
    await running.line(r"worker \d+ runs", 3)
    gate.touch()
    assert await held.result(timeout=30) == "through"
    assert (await engine.get(held.id)).crashes == 1
    assert {worker.pid for worker in await engine.workers()}.isdisjoint({pid})


async def test_sigterm_drains_all_children_and_ends_with_0(start: Start, engine: Client, tmp_path: Path) -> None:
    """R26: running steps finish, nothing new is claimed."""
    gate = tmp_path / "gate"
    running = await start("--processes", "2")
    await running.line(r"worker \d+ runs", 2)
    held = await engine.insert(engine.bound("hold", gate=str(gate)))
    await executing(engine, held.id)
    running.process.send_signal(signal.SIGTERM)
    await running.line(r"drains: \d+ steps", 2)
    late = await engine.insert(engine.bound("quick", n=1))
    gate.touch()
    assert await running.ended() == 0, running.lines
    assert (await engine.get(held.id)).status == "done"
    assert (await engine.get(late.id)).status == "runnable"
    assert await engine.workers() == []


async def test_a_second_signal_hurries(start: Start, engine: Client, tmp_path: Path) -> None:
    """R26: what still runs is cancelled and handed back, spending no attempt."""
    running = await start("--processes", "2")
    await running.line(r"worker \d+ runs", 2)
    held = await engine.insert(engine.bound("hold", gate=str(tmp_path / "never")))
    await executing(engine, held.id)
    running.process.send_signal(signal.SIGINT)
    await running.line(r"drains: \d+ steps", 2)
    await asyncio.sleep(0.6)  # two within half a second count as one
    hurried = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    assert await running.ended() == 0, running.lines
    assert time.monotonic() - hurried < 15  # not the drain's 30 s
    found = await engine.get(held.id)
    assert (found.status, found.attempt, found.crashes) == ("runnable", 0, 0)


async def test_a_third_signal_kills_a_child_that_is_stuck(start: Start, engine: Client) -> None:
    running = await start("--processes", "2")
    await running.line(r"worker \d+ runs", 2)
    stuck = await engine.insert(engine.bound("block"))
    pid = await executing(engine, stuck.id)
    for count in (1, 2, 3):
        running.process.send_signal(signal.SIGTERM)
        await running.line(rf"signal {count}: ")
    assert await running.ended() == 1
    assert any(f"(pid {pid}) was ended by SIGKILL" in line for line in running.lines)


async def test_children_end_when_the_supervisor_is_killed(start: Start, engine: Client, tmp_path: Path) -> None:
    """They drain: what runs finishes, and nobody is left."""
    gate = tmp_path / "gate"
    running = await start("--processes", "2")
    pids = [int(match[1]) for match in await running.line(r"worker \d started \(pid (\d+)\)", 2)]
    await running.line(r"worker \d+ runs", 2)
    held = await engine.insert(engine.bound("hold", gate=str(gate)))
    await executing(engine, held.id)
    running.process.kill()
    await running.line(r"drains: \d+ steps", 2)
    gate.touch()
    await all_gone(pids)
    assert (await engine.get(held.id)).status == "done"
    assert await engine.workers() == []


async def test_a_wrong_command_is_complained_of_once(start: Start) -> None:
    running = await start("--processes", "4", "--queues", "default=5", "--database-url", "nonsense://")
    assert await running.ended() == 2
    assert not any("worker" in line for line in running.lines)  # before any is started
    assert sum(line.startswith("Error:") for line in running.lines) == 1


async def test_the_url_is_not_in_the_arguments_of_the_children(start: Start, engine: Client, database_url: str) -> None:
    """Every user of a machine may read them, with the password."""
    running = await start("--processes", "2", "--database-url", database_url)
    await running.line(r"worker \d+ runs", 2)
    pids = [int(match[1]) for match in await running.line(r"worker \d started \(pid (\d+)\)", 2)]
    for pid in pids:
        assert database_url.encode() not in await asyncio.to_thread(Path(f"/proc/{pid}/cmdline").read_bytes)
    assert len(await engine.workers()) == 2
    running.process.send_signal(signal.SIGTERM)
    assert await running.ended() == 0


async def test_a_child_that_keeps_dying_at_once_is_given_up_without_spinning(
    capfd: pytest.CaptureFixture[str],
) -> None:
    policy = Policy(first=0.1, longest=0.2, limit=4)
    began = time.monotonic()
    supervisor = Supervisor([sys.executable, "-c", "raise SystemExit(7)"], 3, policy)
    assert await supervisor.run() == 7
    log = capfd.readouterr().err
    assert log.count("started") == 4  # the others wait until the first has loaded
    assert "died at once 4 times in a row; giving up" in log
    assert time.monotonic() - began >= 0.1 + 0.2


async def test_one_that_is_ended_alone_is_replaced(start: Start) -> None:
    """A SIGTERM to a child only: it drains, and another takes its place."""
    running = await start("--processes", "2")
    pids = [int(match[1]) for match in await running.line(r"worker \d started \(pid (\d+)\)", 2)]
    await running.line(r"worker \d+ runs", 2)
    os.kill(pids[1], signal.SIGTERM)
    await running.line(rf"\(pid {pids[1]}\) ended with exit code 0; another starts now")
    await running.line(r"worker \d+ runs", 3)
    running.process.send_signal(signal.SIGTERM)
    assert await running.ended() == 0


async def test_a_killed_demo_leaves_nobody_behind() -> None:
    """Its workers end with it, and so does its server."""
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gen_durable", "demo", "--orders", "2000"), stdout=asyncio.subprocess.PIPE
    )
    assert demo.stdout is not None
    async with asyncio.timeout(60):
        while b"2000 orders" not in await demo.stdout.readline():
            assert demo.returncode is None
    offspring = descendants(demo.pid)
    assert len(offspring) >= 4  # the server, the supervisor, two workers
    demo.kill()
    await demo.wait()
    await demo.stdout.read()
    await all_gone(offspring)


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and that those have started."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return children + [grandchild for child in children for grandchild in descendants(child)]
