"""The command line against a database, in this process where that is enough, else as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from click.testing import CliRunner
from engine_support import eventually

from gen_durable import Engine
from gen_durable.cli.app import root

APP = """
import os
from gen_durable import Cancel, Context, Done, Engine, Machine, Next, job, step

@job
async def double(n: int) -> int:
    return n * 2

@job(queue="email")
async def mail(to: str, text: str = "hello") -> str:
    return f"{to}: {text}"

@job
async def refuse() -> None:
    raise Cancel("not today")

class Order(Machine):
    order: int

    @step
    async def first(self, ctx: Context) -> Next:
        # The engine that the worker runs is the one that the module holds, whatever the command line changed.
        await engine.insert(double.bind(n=self.order), key=f"child:{self.order}")
        return Next(self.second)

    @step
    async def second(self, ctx: Context) -> Done:
        return Done({"order": self.order})

engine = Engine(machines=[double, mail, refuse, Order], schema=os.environ["APP_SCHEMA"])
"""

STEERED = """
from gen_durable import Await, Context, Done, Machine, Spawn, Stop, step

class Approval(Machine):
    what: str

    @step
    async def ask(self, ctx: Context) -> Await:
        return Await(["yes", "no"], then=self.decide, timeout=3600)

    @step
    async def decide(self, ctx: Context) -> Done | Stop:
        answer = ctx.awaited[-1]
        if answer.name == "no":
            return Stop("refused")
        return Done({"what": self.what, "by": answer.payload["by"]})

class Team(Machine):
    size: int

    @step
    async def start(self, ctx: Context) -> Spawn:
        return Spawn([Approval(what=str(n)) for n in range(self.size)], then=self.end)

    @step
    async def end(self, ctx: Context) -> Done:
        return Done()
"""


class Ran(NamedTuple):
    code: int
    stdout: str
    stderr: str


class Shell:
    """Runs ``gen-durable`` in a folder that has the module ``app``."""

    def __init__(self, folder: Path, url: str, schema: str, *, inside: bool = False) -> None:
        (folder / "app.py").write_text(APP)
        self.folder = folder
        self.schema = schema
        self.inside = inside
        self.env = {**os.environ, "GEN_DURABLE_DATABASE_URL": url, "APP_SCHEMA": schema}

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "gen_durable", *args]

    def run(self, *args: str, code: int = 0, stdin: str = "") -> Ran:
        if args[0] in ("show", "list", "workers", "queues", "migrate", "signal", "wait", "cancel", "retry"):
            args += ("--schema", self.schema)
        done = self.call(*args, stdin=stdin)
        assert done.code == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def call(self, *args: str, stdin: str = "") -> Ran:
        return (self._inside if self.inside else self._outside)(args, stdin)

    def _outside(self, args: tuple[str, ...], stdin: str) -> Ran:
        done = subprocess.run(
            self.command(*args),
            cwd=self.folder,
            env=self.env,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def _inside(self, args: tuple[str, ...], stdin: str) -> Ran:
        path = sys.path.copy()
        try:
            with contextlib.chdir(self.folder):
                done = CliRunner(env=self.env).invoke(root, args, prog_name="gen-durable", input=stdin)
        finally:
            sys.modules.pop("app", None)
            sys.path[:] = path
        return Ran(done.exit_code, done.stdout, done.stderr)

    def json(self, *args: str, **options: Any) -> Any:
        return json.loads(self.run(*args, "--json", **options).stdout)


@pytest.fixture
def shell(tmp_path: Path, database_url: str, migrated: str) -> Shell:
    return Shell(tmp_path, database_url, migrated)


@pytest.fixture
def inside(tmp_path: Path, database_url: str, migrated: str) -> Shell:
    """The same without a process for each command."""
    return Shell(tmp_path, database_url, migrated, inside=True)


@pytest.fixture
def worker(shell: Shell) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts worker processes; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                shell.command("worker", "app:engine", *args),
                cwd=shell.folder,
                env=shell.env,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


# Migrate ------------------------------------------------------------------------------------------


def test_migrate_says_what_ran_then_that_nothing_is_left(tmp_path: Path, database_url: str, schema: str) -> None:
    shell = Shell(tmp_path, database_url, schema)
    refused = shell.run("list", code=3)
    assert f"gen-durable migrate --schema {schema}" in refused.stderr
    assert shell.json("migrate")["migrations"]
    assert shell.run("migrate").stdout == f"{schema}: nothing to do\n"
    assert shell.json("migrate") == {"schema": schema, "migrations": []}
    assert shell.json("list") == {"items": [], "next": None}


async def test_the_printed_sql_makes_a_schema_that_the_engine_takes(
    tmp_path: Path, database_url: str, schema: str
) -> None:
    script = Shell(tmp_path, "", schema).run("migrate", "--sql").stdout
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        connection.execute(script.encode())
    engine = Engine(database_url, schema=schema, name=schema, queues={})
    async with engine.client():
        assert (await engine.list()).items == []
    assert await engine.migrate() == []


def test_the_url_of_the_command_line_comes_first(shell: Shell, database_url: str) -> None:
    shell.env["GEN_DURABLE_DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/nothing"
    shell.run("list", code=3)
    shell.run("list", "--database-url", database_url)
    shell.run("insert", "app:engine", "double", '{"n": 1}', code=3)
    shell.run("insert", "app:engine", "double", '{"n": 1}', "--database-url", database_url)
    del shell.env["GEN_DURABLE_DATABASE_URL"]
    shell.env["DATABASE_URL"] = database_url
    assert len(shell.json("list")["items"]) == 1


# Insert -------------------------------------------------------------------------------------------


def test_insert_with_every_option(shell: Shell) -> None:
    made = shell.json(
        *("insert", "app:engine", "mail", '{"to": "anna"}', "--key", "mail:1", "--queue", "default"),
        *("--priority", "7", "--at", "2031-01-31T09:00:00+01:00"),
    )
    assert made["key"] == "mail:1"
    found = shell.json("show", str(made["id"]))
    assert found["state"] == {"to": "anna", "text": "hello"}
    assert (found["queue"], found["priority"], found["due_at"]) == ("default", 7, "2031-01-31T08:00:00Z")
    assert shell.json("show", "mail:1") == found


def test_insert_reads_stdin_and_prints_the_id(shell: Shell) -> None:
    done = shell.run("insert", "app:engine", "double", "-", "--delay", "1h", stdin='{"n": 4}')
    found = shell.json("show", done.stdout.strip())
    assert found["state"] == {"n": 4}
    assert found["status"] == "runnable"


def test_a_taken_key_fails_or_gives_the_existing_one(inside: Shell) -> None:
    """R16 by the command line."""
    first = inside.json("insert", "app:engine", "double", '{"n": 1}', "--key", "a")
    refused = inside.run("insert", "app:engine", "double", '{"n": 2}', "--key", "a", code=1)
    assert str(first["id"]) in refused.stderr
    assert "--on-conflict existing" in refused.stderr
    again = inside.json("insert", "app:engine", "double", '{"n": 2}', "--key", "a", "--on-conflict", "existing")
    assert again["id"] == first["id"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["double", '{"n": "x"}'], "'n'"),
        (["double", "{}"], "'n' is missing"),
        (["double", '{"n": 1, "m": 2}'], "'m'"),
        (["double", "[1]"], "must be an object"),
        (["double", '{"n": 1'], "can't be read"),
        (["double", '{"n": 1}', "--queue", "nope"], "'nope'"),
        (["double", '{"n": 1}', "--priority", "99999"], "priority"),
        (["double", '{"n": 1}', "--at", "2031-01-31T09:00:00"], "no time zone"),
        (["double", '{"n": 1}', "--at", "2031-01-31T09:00:00Z", "--delay", "5"], "one of them"),
        (["triple", "{}"], "'triple'"),
    ],
)
def test_wrong_input_ends_with_2_and_inserts_nothing(inside: Shell, args: list[str], said: str) -> None:
    done = inside.run("insert", "app:engine", *args, code=2)
    assert said in done.stderr
    assert done.stdout == ""
    assert inside.json("list")["items"] == []


def test_insert_many_from_a_file_and_again(inside: Shell) -> None:
    lines = inside.folder / "many.jsonl"
    lines.write_text("".join(f'{{"n": {n}}}\n\n' for n in range(4100)))
    args = ("insert", "app:engine", "double", "--many", "many.jsonl", "--key", "n:{n}", "--priority", "3")
    assert inside.json(*args) == {"machine": "double", "inserted": 4100, "duplicates": 0}
    assert inside.json("show", "n:4099")["priority"] == 3
    lines.write_text('{"n": 1}\n{"n": 4100}\n')
    assert inside.json(*args, code=1) == {"machine": "double", "inserted": 1, "duplicates": 1}
    assert inside.json(*args, "--on-conflict", "existing") == {"machine": "double", "inserted": 0, "duplicates": 2}


@pytest.mark.parametrize("line", ['{"n": "x"}', '{"n": 1', "[]", '{"n": 1, "m": 1}'])
def test_a_wrong_line_is_named_and_nothing_is_inserted(inside: Shell, line: str) -> None:
    stdin = '{"n": 1}\n' * 5000 + line
    done = inside.run("insert", "app:engine", "double", "--many", "-", code=2, stdin=stdin)
    assert "line 5001" in done.stderr
    assert inside.json("list")["items"] == []


def test_a_key_that_can_not_be_filled_is_named(inside: Shell) -> None:
    done = inside.run("insert", "app:engine", "double", "--many", "-", "--key", "{x}", code=2, stdin='{"n": 1}')
    assert "line 1" in done.stderr
    said = " ".join(done.stderr.replace("│", " ").split())
    assert "uses the field 'x', which is not there; its fields are: n" in said
    inside.run("insert", "app:engine", "double", "--many", "no_such_file", code=2)


# Worker, show, list -------------------------------------------------------------------------------


async def test_a_worker_runs_what_was_inserted_and_drains(
    shell: Shell, worker: Callable[..., subprocess.Popen[str]], database_url: str
) -> None:
    """R26: SIGTERM drains, exit code 0. Other queues by option; the module's own engine is the one that runs."""
    order = shell.json("insert", "app:engine", "Order", '{"order": 5}', "--key", "order:5")
    letter = shell.json("insert", "app:engine", "mail", '{"to": "anna"}')
    shell.run("insert", "app:engine", "refuse", "--key", "refused")
    process = worker("--queues", "default=2,email=1")
    client = Engine(database_url, schema=shell.schema, name=shell.schema, queues={})
    async with client.client():
        assert await client.result("order:5", timeout=30) == {"order": 5}
        assert await client.result("child:5", timeout=30) == 10
        assert await client.result(letter["id"], timeout=30) == "anna: hello"
        await client.list()
        (known,) = shell.json("workers")["workers"]
    assert known["queues"] == {"default": 2, "email": 1}
    assert known["pid"] == process.pid
    assert str(process.pid) in shell.run("workers").stdout

    shown = shell.run("show", "order:5", "--history").stdout
    assert "status    done" in shown
    assert '{"order": 5}' in shown
    assert [line.split()[3] for line in shown.partition("SEQ")[2].splitlines()[1:]] == ["next", "done"]
    history = shell.json("show", str(order["id"]), "--history")["history"]
    assert [(one["step"], one["outcome"]) for one in history] == [("first", "next"), ("second", "done")]
    assert "not today" in shell.run("show", "refused").stdout

    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    assert "drains" in log
    assert shell.json("workers")["workers"] == []


def test_list_filters_and_pages(inside: Shell) -> None:
    inside.run("insert", "app:engine", "double", "--many", "-", "--key", "n:{n}", stdin='{"n": 1}\n{"n": 2}\n{"n": 3}')
    inside.run("insert", "app:engine", "mail", '{"to": "anna"}', "--delay", "1d")

    def ids(*args: str) -> list[str | None]:
        return [one["key"] for one in inside.json("list", *args)["items"]]

    assert len(ids()) == 4
    assert len(ids("--status", "runnable", "--status", "done")) == 4
    assert ids("--status", "done") == []
    assert ids("--machine", "mail") == ids("--queue", "email") == [None]
    keys = ids("--key-prefix", "n:")
    assert sorted(keys, key=str) == ["n:1", "n:2", "n:3"]
    page = inside.json("list", "--key-prefix", "n:", "--limit", "2")
    assert [one["key"] for one in page["items"]] == keys[:2]
    assert ids("--key-prefix", "n:", "--after", str(page["next"])) == keys[2:]
    plain = inside.run("list", "--limit", "2")
    assert len(plain.stdout.splitlines()) == 3
    assert "--after" in plain.stderr


def test_show_of_what_is_not_there_fails(inside: Shell) -> None:
    assert "id 99" in inside.run("show", "99", code=1).stderr
    assert "key '99'" in inside.run("show", "99", "--key", code=1).stderr


def test_queues_are_counted_paused_and_resumed(inside: Shell) -> None:
    inside.run("insert", "app:engine", "double", "--many", "-", stdin='{"n": 1}\n{"n": 2}')
    found = inside.json("queues")
    (count,) = found["counts"]
    assert found["queues"] == [{"name": "default", "paused": False}]
    assert count == {"queue": "default", "machine": "double", "version": 1, "status": "runnable", "count": 2}
    assert inside.run("queues").stdout.splitlines()[1].split() == ["default", "no", "double", "1", "2"]
    assert inside.run("queues", "pause", "default").stdout == "default: paused\n"
    assert inside.json("queues")["queues"] == [{"name": "default", "paused": True}]
    assert inside.run("queues").stdout.splitlines()[0].split()[:3] == ["QUEUE", "PAUSED", "MACHINE"]
    assert inside.run("queues").stdout.splitlines()[1].split() == ["default", "yes", "double", "1", "2"]
    with psycopg.connect(inside.env["GEN_DURABLE_DATABASE_URL"]) as connection:
        asked = f"SELECT paused FROM {inside.schema}.queues WHERE name = 'default'"
        assert connection.execute(asked.encode()).fetchone() == (True,)
        inside.run("queues", "resume", "default")
        connection.rollback()
        assert connection.execute(asked.encode()).fetchone() == (False,)
    assert "nope" in inside.run("queues", "pause", "nope", code=2).stderr


async def test_empty_queues_are_shown(inside: Shell) -> None:
    """A paused queue must not be out of sight because nothing is in it."""
    url = inside.env["GEN_DURABLE_DATABASE_URL"]
    engine = Engine(url, schema=inside.schema, name=inside.schema, queues={"email": 1})
    async with engine:
        await engine.pause_queue("email")
    lines = (await asyncio.to_thread(inside.run, "queues")).stdout.splitlines()
    assert [line.split() for line in lines[1:]] == [["email", "yes", "-", "-"]]


def test_options_of_the_group_reach_its_commands(inside: Shell) -> None:
    refused = inside.call("queues", "--schema", "no_such_schema", "pause", "default")
    assert refused.code == 3
    assert "no_such_schema" in refused.stderr


# Signals, waiting, steering -------------------------------------------------------------------------


async def until(engine: Engine, target: int, status: str) -> None:
    async def there() -> bool:
        return (await engine.get(target)).status == status

    await eventually(there)


@pytest.fixture
async def parked(inside: Shell, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Engine, Shell, Any]]:
    """A worker in this process, the shell, and the module ``steered`` with its machines."""
    path = inside.folder / "steered.py"
    path.write_text(STEERED)
    spec = importlib.util.spec_from_file_location("steered", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "steered", module)
    spec.loader.exec_module(module)
    machines = [module.Approval, module.Team]
    url = inside.env["GEN_DURABLE_DATABASE_URL"]
    async with Engine(url, machines=machines, schema=inside.schema, name=inside.schema) as engine:
        yield engine, inside, module


async def test_signal_and_wait(parked: tuple[Engine, Shell, Any]) -> None:
    """R10 by the command line: who waits for what is shown, a signal wakes it, `wait` prints the result."""
    engine, shell, module = parked

    async def run(*args: str, code: int = 0) -> Ran:
        return await asyncio.to_thread(shell.run, *args, code=code)

    handle = await engine.insert(module.Approval(what="a chair"), key="request:1")
    await until(engine, handle.id, "awaiting_signal")
    shown = (await run("show", "request:1")).stdout.replace("waits for", "waits_for")
    fields = dict(line.split(None, 1) for line in shown.splitlines())
    assert (fields["status"], fields["waits_for"]) == ("awaiting_signal", "no, yes")
    assert "deadline" in fields
    assert "due" not in fields
    listed = (await run("list", "--status", "awaiting_signal")).stdout
    assert "WAITS FOR" in listed
    assert "no, yes" in listed
    assert "AWAITING_SIGNAL" in (await run("queues")).stdout
    still = await run("wait", "request:1", "--timeout", "0.05", code=6)
    assert "still awaiting_signal" in still.stderr
    assert still.stdout == ""

    other = Shell(shell.folder, shell.env["GEN_DURABLE_DATABASE_URL"], shell.schema)
    waiting = asyncio.create_task(asyncio.to_thread(other.run, "wait", "request:1", "--timeout", "30s"))
    sent = ("signal", "request:1", "yes", "--payload", '{"by": "anna"}')
    assert (await run(*sent)).stdout == "request:1: yes delivered\n"
    result = {"what": "a chair", "by": "anna"}
    assert json.loads((await waiting).stdout) == result
    told = json.loads((await run("wait", str(handle.id), "--json")).stdout)
    assert told == {"id": handle.id, "key": "request:1", "status": "done", "result": result, "error": None}
    assert "no live instance" in (await run(*sent, code=1)).stderr


async def test_a_repeated_signal_is_told(parked: tuple[Engine, Shell, Any]) -> None:
    """R11: the dedup key; and a key that looks like a number."""
    engine, shell, module = parked
    await engine.insert(module.Approval(what="a lamp"), key="99", delay=3600)
    args = ("signal", "99", "yes", "--payload", "-", "--dedup-key", "a", "--key", "--json")
    told = [json.loads((await asyncio.to_thread(shell.run, *args, stdin="[1]")).stdout)["new"] for _ in range(2)]
    assert told == [True, False]


async def test_cancel_and_retry(parked: tuple[Engine, Shell, Any]) -> None:
    """Section 12 by the command line: each target is answered for, whatever became of the others."""
    engine, shell, module = parked

    async def run(*args: str, code: int = 0) -> Ran:
        return await asyncio.to_thread(shell.run, *args, code=code)

    team = await engine.insert(module.Team(size=3), key="team")
    await until(engine, team.id, "awaiting_children")
    assert "3 children" in (await run("show", "team")).stdout
    members = (await engine.list(machine="Approval")).items
    shown = (await run("show", str(members[0].id))).stdout
    assert ["parent", str(team.id)] in [line.split() for line in shown.splitlines()]

    done = await run("cancel", "team", "nobody", "--cascade", "--reason", "reorganised", code=1)
    assert done.stdout == "team: cancelled\n"
    assert "nobody" in done.stderr
    assert {one.status for one in (await engine.list()).items} == {"cancelled"}
    assert "reorganised" in (await run("wait", "team", code=5)).stderr
    assert (await run("cancel", str(team.id))).stdout == f"{team.id}: had ended already\n"

    first, second = members[0].id, members[1].id
    answers = json.loads((await run("retry", str(first), "123456789", str(second), "--json", code=1)).stdout)
    assert [one["answer"] for one in answers] == ["runs again", None, "runs again"]
    assert "123456789" in answers[1]["error"]
    await until(engine, first, "awaiting_signal")
    assert "only a failed or cancelled one" in (await run("retry", str(first), code=1)).stderr
    await run("signal", str(first), "no")
    failed = await run("wait", str(first), "--json", code=4)
    assert json.loads(failed.stdout)["error"]["message"] == "refused"
    assert "refused" in failed.stderr


def test_insert_replaces_and_scopes(inside: Shell) -> None:
    """R16 by the command line: replace where it waits; a scope without uniqueness."""
    args = ("insert", "app:engine", "double", "--key", "a", "--delay", "1h")
    first = inside.json(*args, '{"n": 1}')
    second = inside.json(*args, '{"n": 2}', "--on-conflict", "replace")
    assert second["id"] == first["id"]
    assert inside.json("show", "a")["state"] == {"n": 2}
    loose = ("insert", "app:engine", "double", '{"n": 3}', "--key", "b", "--scope", "none")
    assert inside.json(*loose)["id"] != inside.json(*loose)["id"]
    inside.run("insert", "app:engine", "double", '{"n": 4}', "--key", "c", "--scope", "live", "--scope", "done")
    refused = inside.run("insert", "app:engine", "double", '{"n": 4}', "--key", "c", "--scope", "done", code=2)
    assert '"live"' in refused.stderr


# Development server, demo -------------------------------------------------------------------------


def test_the_development_server_by_command(tmp_path: Path) -> None:
    shell = Shell(tmp_path, "", "gen_durable", inside=True)
    assert shell.json("dev", "status", code=1)["running"] is False
    shell.run("dev", "url", code=1)
    try:
        begun = shell.run("migrate")  # a command that starts it says so
        assert "Started the development server in" in begun.stderr
        assert "dev stop" in begun.stderr
        started = shell.run("dev", "start")
        url = shell.run("dev", "url").stdout.strip()
        password = url.partition("postgres:")[2].partition("@")[0]
        assert password
        assert password not in started.stdout + started.stderr
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert shell.json("dev", "status")["running"] is True
        # Commands that write say that it is used.
        assert str(tmp_path) in shell.run("migrate").stderr
        done = shell.run("insert", "app:engine", "double", '{"n": 1}')
        assert str(tmp_path) in done.stderr
        assert shell.json("show", done.stdout.strip())["machine"] == "double"
    finally:
        stopped = shell.json("dev", "stop")
    assert stopped == {"stopped": True}
    assert "stopped" in shell.json("dev", "status", code=1)["detail"]
    assert shell.json("dev", "stop") == {"stopped": False}


def test_the_demo_kills_a_worker_and_loses_nothing(tmp_path: Path) -> None:
    done = Shell(tmp_path, "", "gen_durable").run("demo", "--orders", "120")
    assert "kill -9" in done.stdout
    assert "120 of 120" in done.stdout
    assert "360 of 360" in done.stdout
    assert "Nothing was lost" in done.stdout
