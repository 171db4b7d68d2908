"""The command line without a database: help, usage errors, exit codes, loading of engines."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import psycopg
import pytest
import rich_click
from click.testing import CliRunner, Result

from gen_durable import Engine, __version__, job
from gen_durable._store.migrating import migrations
from gen_durable.cli._options import queue_sizes, seconds
from gen_durable.cli._output import pairs, table
from gen_durable.cli._target import find_machine, load_engine, reconfigure
from gen_durable.cli.app import _message, exit_code, root
from gen_durable.cli.queues import STATUSES
from gen_durable.cli.supervisor import Policy
from gen_durable.errors import (
    DatabaseUnreachable,
    DuplicateInstance,
    InstanceCancelled,
    InstanceFailed,
    InvalidState,
    NoSuchInstance,
    SchemaMissing,
    StillRunning,
)
from gen_durable.status import Status

APP = """
from gen_durable import Engine, job

@job
async def double(n: int) -> int:
    return n * 2

class Holder:
    engine = Engine(machines=[double])

engine = Holder.engine
number = 3
"""


@job
async def double(n: int) -> int:
    return n * 2


@job(name="double", version=2)
async def double_again(n: int) -> int:
    return n * 2


def call(*args: str) -> Result:
    return CliRunner().invoke(root, args, prog_name="gen-durable")


def commands(command: click.Command = root, path: str = "gen-durable") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, f"{path} {name}")


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a user's in the working directory."""
    name = f"app_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield name
    sys.modules.pop(name, None)


# Help ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_option_and_argument_is_documented(path: str, command: click.Command) -> None:
    assert command.help, f"{path} has no help"
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text, f"{path}: {parameter.name} has no help"
        assert text.endswith((".", ")")), f"{path}: the help of {parameter.name} is not a sentence: {text!r}"
    result = call(*path.split()[1:], "--help")
    assert result.exit_code == 0, result.output
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.opts[0] in result.output


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_debug(path: str, command: click.Command) -> None:
    own = {name for parameter in command.params for name in parameter.opts}
    assert "--debug" in own or path in ("gen-durable dev", "gen-durable schedule")


@pytest.mark.parametrize(
    "path",
    [
        *("show", "list", "workers", "queues", "insert", "migrate", "dev status", "schedule list"),
        *("signal", "wait", "cancel", "retry"),
    ],
)
def test_what_answers_has_json(path: str) -> None:
    found = dict(commands())[f"gen-durable {path}"]
    assert any("--json" in parameter.opts for parameter in found.params)


def test_exit_codes_are_in_the_help() -> None:
    text = " ".join(call("--help").output.split())
    for part in (
        "0 done",
        "1 the operation failed",
        "2 wrong usage",
        "3 the database",
        "4, 5, 6 `wait`",
        "130 interrupted",
    ):
        assert part in text


def test_it_is_drawn_by_rich() -> None:
    assert isinstance(root, rich_click.RichGroup)


def test_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gen_durable", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"gen-durable {__version__}\n"
    assert done.stderr == ""


def test_the_commands_alone_load_nothing_heavy() -> None:
    """`--version`, `--help` and completion must answer at once."""
    code = (
        "import sys, gen_durable; before = set(sys.modules); import gen_durable.cli.app; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "gen_durable.cli.app" in loaded
    assert not loaded & {"psycopg", "psycopg_pool", "uvloop", "asyncio", "msgspec", "rich.table", "rich.progress"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    result = call("completion", shell)
    assert result.exit_code == 0
    assert "_GEN_DURABLE_COMPLETE" in result.output
    assert "gen-durable" in result.output


def test_completion_completes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from gen_durable.cli import main; main()"],
        env={"_GEN_DURABLE_COMPLETE": "bash_complete", "COMP_WORDS": "gen-durable wor", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.partition(",")[2] for line in done.stdout.split()] == ["worker", "workers"]


# Usage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nope"], "No such command"),
        (["list", "--status", "nope"], "--status"),
        (["list", "--limit", "0"], "--limit"),
        (["migrate", "--sql", "--json"], "give one of them"),
        (["migrate", "--schema", "Bad", "--sql"], "schema='Bad'"),
        (["worker", "app"], "MODULE:ENGINE"),
        (["worker", "app.py:engine"], "app:engine"),
        (["worker", "no_such_module_at_all:engine"], "no_such_module_at_all"),
        (["worker", "app:engine", "--processes", "0"], "--processes"),
        (["worker", "app:engine", "--queues", "a=x"], "name=n"),
        (["worker", "app:engine", "--embedded", "--database-url", "postgresql://x/y"], "give one of them"),
        (["insert", "app:engine", "X", "{}", "--many", "file"], "either JSON or --many"),
        (["insert", "app:engine", "X", "--delay", "soon"], "not a duration"),
        (["insert", "app:engine", "X", "--at", "soon"], "ISO 8601"),
        (["insert", "app:engine", "X", "--at", "2031-01-31T09:00:00"], "2031-01-31T09:00:00Z"),
        (["insert", "app:engine", "X", "--on-conflict", "ignore"], "--on-conflict"),
        (["insert", "app:engine", "X", "--many", "file", "--on-conflict", "replace"], "can't replace"),
        (["insert", "app:engine", "X", "--scope", "done"], "give --key too"),
        (["insert", "app:engine", "X", "--key", "k", "--scope", "none", "--scope", "live"], "stands alone"),
        (["signal", "7"], "NAME"),
        (["signal", "7", "go", "--payload", "yes"], "--payload can't be read"),
        (["wait", "7", "--timeout", "soon"], "not a duration"),
        (["cancel"], "TARGET"),
        (["cancel", "7", "--reason", ""], "--reason is empty"),
        (["retry"], "TARGET"),
        (["completion", "tcsh"], "tcsh"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(args: list[str], said: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert "Traceback" not in result.output


def test_reading_without_a_database_makes_none(app: str) -> None:
    """A wrong folder or a forgotten variable must not give an empty new server."""
    result = call("list")
    assert result.exit_code == 2
    assert "dev start" in result.stderr
    assert not Path(".gen_durable").exists()


def test_a_worker_without_a_database_refuses(app: str) -> None:
    result = call("worker", f"{app}:engine")
    assert result.exit_code == 2
    assert "--embedded" in result.stderr
    assert "Traceback" not in result.output


def test_an_unreachable_database_is_one_line_without_the_password() -> None:
    result = call("list", "--database-url", "postgresql://anna:s3cret@127.0.0.1:1/shop")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
    assert all(part in result.stderr for part in ("127.0.0.1", "port 1", "shop", "anna"))
    assert "s3cret" not in result.stderr


def test_debug_shows_the_traceback() -> None:
    url = "postgresql://anna:s3cret@127.0.0.1:1/shop"
    for args in (["--debug", "list", "--database-url", url], ["list", "--debug", "--database-url", url]):
        result = call(*args)
        assert result.exit_code == 3
        assert "Traceback" in result.stderr
        assert "s3cret" not in result.stderr


def test_usage_errors_are_plain_lines_where_there_is_no_terminal() -> None:
    done = subprocess.run([sys.executable, "-m", "gen_durable", "lst"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].startswith("Error: No such command 'lst'.")
    assert len(done.stderr.splitlines()) == 2


def test_migrate_sql_needs_no_database() -> None:
    result = call("migrate", "--sql", "--schema", "shop")
    assert result.exit_code == 0
    assert result.stdout.startswith("BEGIN;")
    assert result.stdout.rstrip().endswith("COMMIT;")
    assert "shop.migrations" in result.stdout
    for migration in migrations("shop"):
        assert migration.name in result.stdout


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(root.commands["list"], "callback", interrupted)
    assert call("list").exit_code == 130


# Errors -------------------------------------------------------------------------------------------


def test_exit_codes() -> None:
    assert exit_code(NoSuchInstance(3)) == 1
    assert exit_code(DuplicateInstance("a", 3)) == 1
    assert exit_code(RuntimeError()) == 1
    assert exit_code(InstanceFailed(3, None)) == 4
    assert exit_code(InstanceCancelled(3)) == 5
    assert exit_code(StillRunning(3, "executing", 1)) == 6
    assert exit_code(InvalidState("x")) == 2
    assert exit_code(DatabaseUnreachable("x")) == 3
    assert exit_code(SchemaMissing("x")) == 3
    assert exit_code(psycopg.errors.InsufficientPrivilege("permission denied")) == 3


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:hide@h/d",
        "postgresql://u:a@hide@h/d",
        "host=h password=hide",
        "host=h PASSWORD = 'hi de' user=u",
    ],
)
def test_passwords_are_hidden_wherever_they_come_from(text: str) -> None:
    shown = _message(RuntimeError(f"can't use {text}"))
    assert "***" in shown
    assert "hide" not in shown
    assert "hi de" not in shown


def test_an_unknown_error_is_one_line_that_names_its_type() -> None:
    assert _message(KeyError("x")) == "KeyError: 'x' (--debug shows where)"
    assert _message(ValueError("a\nb")) == "ValueError: a b (--debug shows where)"


# Parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90.0), ("1.5", 1.5), (".5s", 0.5), ("10m", 600.0), ("2 h", 7200.0), ("1d", 86400.0)]
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1w", "m", "1e3", "nan", "١"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(click.BadParameter):
        seconds(text)


def test_queue_sizes() -> None:
    assert queue_sizes("default=50, email=5") == {"default": 50, "email": 5}
    assert queue_sizes("a=b=5") == {"a=b": 5}


@pytest.mark.parametrize("text", ["", "a", "a=", "=5", "a=0", "a=-1", "a=5,", "a=5,a=6", "a=²"])
def test_wrong_queue_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter):
        queue_sizes(text)


def test_the_statuses_offered_are_those_that_occur() -> None:
    assert list(STATUSES) == list(dict.fromkeys(status.label for status in Status))


# Loading ------------------------------------------------------------------------------------------


def test_an_engine_is_loaded_from_the_working_directory(app: str) -> None:
    engine = load_engine(f"{app}:engine")
    assert isinstance(engine, Engine)
    assert load_engine(f"{app}:Holder.engine") is engine


@pytest.mark.parametrize(
    ("path", "said"), [("engin", "its engines are: engine"), ("number", "type int"), ("Holder.x", "no 'Holder.x'")]
)
def test_what_is_no_engine_is_refused_by_name(app: str, path: str, said: str) -> None:
    with pytest.raises(click.UsageError, match=said) as refused:
        load_engine(f"{app}:{path}")
    assert app in str(refused.value)


def test_a_module_that_fails_is_named_with_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "broken_app.py").write_text("x = 1\ny = x / 0\n")
    (tmp_path / "lacking_app.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(click.UsageError, match=r"broken_app.*ZeroDivisionError.*broken_app\.py, line 2"):
        load_engine("broken_app:engine")
    with pytest.raises(click.UsageError, match=r"'lacking_app' can't be imported.*no_such_package_at_all"):
        load_engine("lacking_app:engine")


def test_settings_are_changed_in_place_and_keep_hooks_and_machines() -> None:
    engine = Engine(
        "postgresql://h/one", machines=[double], queues={"a": 1}, schema="shop", lease=30, history="off", name="n"
    )
    before = engine.settings
    engine.on("step", print)
    reconfigure(engine, queues={"b": 2}, url="postgresql://h/two")
    assert engine.settings.queues == {"b": 2}
    assert "two" in (engine.settings.url or "")
    assert engine._hooks.step == [print]
    kept = {field.name for field in dataclasses.fields(before)} - {"queues", "url"}
    assert all(getattr(engine.settings, name) == getattr(before, name) for name in kept)


def test_every_setting_can_be_given_to_an_engine() -> None:
    """What `reconfigure` rests on."""
    parameters = set(inspect.signature(Engine).parameters)
    assert parameters == {field.name for field in dataclasses.fields(Engine().settings)}


def test_machines_are_found_by_name_the_newest_first() -> None:
    engine = Engine(machines=[double, double_again])
    assert find_machine(engine, "double").version == 2
    assert find_machine(engine, "double_again").version == 2  # by the class's name
    with pytest.raises(click.UsageError, match="'triple'; it has: double"):
        find_machine(engine, "triple")


# Output -------------------------------------------------------------------------------------------


def test_tables_are_plain_columns_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table(("id", "what"), [[1, "x" * 200], [None, "two\nlines"]], empty="nothing")
    assert capsys.readouterr().out.splitlines() == ["ID  WHAT", f"1   {'x' * 200}", "    two lines"]
    table(("id",), [], empty="nothing")
    assert capsys.readouterr() == ("", "nothing\n")


def test_pairs_leave_out_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    pairs({"id": 1, "key": None, "status": "done", "state": "{\n}"})
    assert capsys.readouterr().out.splitlines() == ["id      1", "status  done", "state   {", "        }"]


# Supervisor ---------------------------------------------------------------------------------------


def test_the_first_death_is_replaced_at_once_and_the_next_wait_longer() -> None:
    policy = Policy()
    assert [policy.delay(quick) for quick in range(6)] == [0.0, 0.0, 0.5, 1.0, 2.0, 4.0]
    assert policy.delay(60) == policy.longest
