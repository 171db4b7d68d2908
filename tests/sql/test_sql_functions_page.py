"""The guide "from-sql": its tables are the functions' arguments, its SQL runs, its grants are those that were tried."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from functions_stage import Caller
from sql_stage import Stage
from test_sql_functions_refuse import BAD_INSERTS, GRANTS, WRAPPER

from gen_durable import Engine

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "from-sql.md").read_text("utf-8")
ARGUMENT = re.compile(r"^\| `(\w+)` \| ([^|]+?) \| (?:`([^`]+)` )?\| [^|]*\|$", re.MULTILINE)
QUERY = """
SELECT p.proname, pg_get_function_arguments(p.oid) FROM pg_proc p
WHERE p.pronamespace = '{schema}'::regnamespace AND NOT p.prosecdef AND p.proconfig IS NOT NULL
"""


def blocks(info: str) -> list[str]:
    return re.findall(rf"^```{info}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def section(name: str) -> str:
    return PAGE.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]


def arguments_of(shown: str) -> list[tuple[str, str, str]]:
    """Name, type and default (without its cast) of each argument, as the server shows them."""
    found = []
    for part in shown.split(", "):
        declared, _, default = part.partition(" DEFAULT ")
        name, _, kind = declared.partition(" ")
        found.append((name, kind, re.sub(r"::[\w \[\]]+$", "", default)))
    return found


async def test_the_tables_are_the_functions_arguments(stage: Stage) -> None:
    """Each public function has a section, and each argument a line: its name, type and default, in their order."""
    real: dict[str, list[tuple[str, str, str]]] = {}
    for name, shown in sorted(await stage.ask(QUERY)):
        found = arguments_of(shown)
        if name in real:  # one for ids, one for keys: they differ in their first argument's type
            assert found[1:] == real[name][1:]
            found[0] = ("target", f"{real[name][0][1]} or {found[0][1]}", "")
        real[name] = found
    assert set(real) == {"insert_instance", "insert_instances", "signal", "signal_or_insert", "cancel", "retry"}
    documented = {
        name: [
            (argument, kind.replace("`", ""), default) for argument, kind, default in ARGUMENT.findall(section(name))
        ]
        for name in real
    }
    assert documented == real


def test_every_sqlstate_is_in_the_table() -> None:
    codes = set(re.findall(r"^\| `(\w{5})` \| `(\w+)`", section("Errors"), re.MULTILINE))
    for code, condition in codes:
        assert psycopg.errors.lookup(code).__name__.lower() == condition.replace("_", "")
    assert {code for _, code, _, _ in BAD_INSERTS} <= {code for code, _ in codes}
    files = (Path(__file__).parents[2] / "src/gen_durable/_store/functions").glob("*.sql")
    raised = {code for file in files for code in re.findall(r"ERRCODE = '(\w+)'", file.read_text("utf-8"))}
    assert raised | {"22007"} == {code for code, _ in codes}


def test_the_grants_of_the_page_are_those_that_were_tried() -> None:
    def plain(text: str) -> str:
        return text.replace("{s}_app", "shop").replace("{s}", "gen_durable").replace("{role}", "app").strip()

    assert [text.strip() for text in blocks("sql no-run")] == [plain(GRANTS), plain(WRAPPER)]


async def test_the_sql_of_the_page_runs(caller: Caller, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the page's own machines, in the order of the page; then a worker goes on with what was signalled."""
    (code,) = blocks("python")
    monkeypatch.setenv("GEN_DURABLE_DATABASE_URL", database_url)
    monkeypatch.setitem(Engine.__init__.__kwdefaults__, "schema", caller.schema)
    page = ModuleType("from_sql_page")
    monkeypatch.setitem(sys.modules, "from_sql_page", page)
    result: Any = eval(
        compile(code, "from-sql.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True), page.__dict__
    )
    await result
    async with page.engine as engine:
        await caller.all("SET search_path = {s}")
        for block in blocks("sql"):
            await caller.all(block.replace("gen_durable.", "{s}."))
        for key in ("order:42", "order:1"):
            assert (await engine.result(key, timeout=10))["paid"] == 100
        assert await caller.one("SELECT count(*) FROM {s}.all_instances WHERE machine = 'Checkout'") == 5
