"""The documentation names what there is: no more (links, commands) and no less (names, settings, errors, events)."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import get_args

import pytest
import rich_click as click
from docs_support import DOCS, GUIDES, anchors, commands, links, name_of, pages

import gen_durable
from gen_durable import (
    Backoff,
    Context,
    Engine,
    Machine,
    Snapshot,
    Transition,
    errors,
    events,
    job,
    pytest_plugin,
    step,
    testing,
)
from gen_durable.cli.app import root

OPERATIONS = GUIDES / "operations.md"
TABLE_ROW = re.compile(r"^\| `(?P<name>\w+)` \| `(?P<default>[^`]+)` \| (?P<unit>[^|]+) \| [^|]+ \|$", re.MULTILINE)


def everything() -> str:
    return "\n".join(page.read_text("utf-8") for page in [*GUIDES.glob("*.md"), *DOCS.glob("*.md")])


def missing(names: list[str], text: str) -> list[str]:
    """The names that occur nowhere as code: neither in backquotes nor in a block."""
    code = "\n".join(re.findall(r"^ *```.*?^ *```|`[^`\n]+`", text, re.MULTILINE | re.DOTALL))
    return [name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", code)]


def parameters(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls", "func")]  # type: ignore[arg-type]


# Links and commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{name_of(page)}: {target}; its headings are {sorted(anchors(there))}"


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = root
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            raise LookupError(f"there is no command gen-durable {' '.join(words)}")
        command = command.commands[rest.pop(0)]
    return command, rest


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_commands_exist_with_their_options(page: Path) -> None:
    for words in commands(page):
        command, rest = find_command(words)
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        known |= {"--help", "--version"}
        for word in rest:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"{name_of(page)}: gen-durable {' '.join(words)}"


def test_every_command_is_documented() -> None:
    named = {tuple(words[:1]) for page in pages() for words in commands(page)}
    assert {(name,) for name in root.commands} <= named


# Names ----------------------------------------------------------------------------------------------


def test_every_public_name_is_documented() -> None:
    assert missing(list(gen_durable.__all__), everything()) == []


def test_every_name_of_the_testing_module_and_every_fixture_is_documented() -> None:
    names = [*testing.__all__, *pytest_plugin.__all__, *parameters(testing.drain)]
    names += [field.name for field in dataclasses.fields(testing.Tally)]
    assert missing(names, (GUIDES / "testing.md").read_text("utf-8")) == []


def test_every_error_is_documented() -> None:
    assert missing(list(errors.__all__), everything()) == []


def test_every_event_is_documented() -> None:
    text = OPERATIONS.read_text("utf-8")
    assert missing(list(get_args(events.EventName)), text) == []
    classes = [name for name in events.__all__ if name.endswith("Event")]
    fields = [field.name for name in classes for field in dataclasses.fields(getattr(events, name))]
    assert missing([*classes, *fields], text) == []


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("jobs.md", parameters(job)),
        ("jobs.md", parameters(Engine.insert)),
        ("jobs.md", list(vars(Context)["__slots__"])),
        ("jobs.md", [field.name for field in dataclasses.fields(Backoff)]),
        ("machines.md", parameters(step)),
        ("machines.md", parameters(Machine.__init_subclass__)),
        ("machines.md", parameters(Engine.list)),
        ("machines.md", [field.name for field in dataclasses.fields(Transition)]),
        ("machines.md", [field.name for field in dataclasses.fields(Snapshot)]),
    ],
    ids=["job", "insert", "Context", "Backoff", "step", "Machine", "list", "Transition", "Snapshot"],
)
def test_every_option_and_attribute_is_documented(page: str, names: list[str]) -> None:
    assert missing(names, (GUIDES / page).read_text("utf-8")) == []


def test_the_configuration_table_is_the_engine_s_signature() -> None:
    """Every setting with its default, in the order of the signature."""
    table = {row["name"]: row["default"] for row in TABLE_ROW.finditer(OPERATIONS.read_text("utf-8"))}
    assert list(table) == parameters(Engine.__init__)
    settings = Engine().settings
    for name, default in table.items():
        assert ast.literal_eval(default) == getattr(settings, name), name


def test_a_guide_can_be_read_in_one_go() -> None:
    for page in GUIDES.glob("*.md"):
        assert len(page.read_text("utf-8").splitlines()) <= 400, name_of(page)
