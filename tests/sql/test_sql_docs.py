"""The pages about the database name what is in it, and their queries run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sql_stage import Stage

from gen_durable._store.operation import catalog
from gen_durable.status import Status, TransitionKind

DOCS = Path(__file__).parents[2] / "docs"
STATES = (DOCS / "state_machine.md").read_text("utf-8")
INTERNALS = (DOCS / "guides" / "internals.md").read_text("utf-8")
QUERIES = re.findall(r"```sql\n(.*?)```", INTERNALS, re.DOTALL)
DAILY = re.compile(r"_[0-9]{8}")

CHANGES = (
    r"UPDATE any\.instances(?:(?!WHERE|FROM).)*\bstatus = |"
    r"INSERT INTO any\.instances|DELETE FROM any\.(instances|finished)"
)

RELATIONS = """
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind = ANY (%s::text[]::"char"[])
    AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = c.oid AND c.relkind = 'i')
"""


def named(text: str) -> set[str]:
    return {word for quoted in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"[\w/]+", quoted)}


def first_cells(text: str, heading: str) -> set[str]:
    """The quoted names in the first column of the table under a heading."""
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


async def relations(stage: Stage, *kinds: str) -> set[str]:
    rows = await stage.ask(RELATIONS, list(kinds))
    return {row[0] for row in rows if not DAILY.search(row[0])}


async def test_every_table_view_and_function_is_explained(stage: Stage) -> None:
    assert await relations(stage, "r", "p", "v") <= named(INTERNALS)
    functions = await stage.ask("SELECT proname FROM pg_proc WHERE pronamespace = '{schema}'::regnamespace")
    assert {row[0] for row in functions} <= named(INTERNALS)
    leaves = {"all_instances", "finished_swept", "finished_default", "transitions_default"}
    assert first_cells(INTERNALS, "Tables") == await relations(stage, "r", "p", "v") - leaves


async def test_the_table_of_indexes_is_complete_and_true(stage: Stage) -> None:
    assert first_cells(INTERNALS, "Indexes") == await relations(stage, "i", "I")


def test_the_table_of_statements_is_complete_and_true() -> None:
    assert first_cells(INTERNALS, "Statements and their locks") == set(catalog("any"))


def test_every_status_and_outcome_is_drawn() -> None:
    names = {status.name.lower() for status in Status}
    assert names == {name for cell in re.findall(r"^\| \d \| `(\w+)`", STATES, re.MULTILINE) for name in [cell]}
    assert {kind.label for kind in TransitionKind} <= named(STATES)
    for number, name in re.findall(r"^\| (\d) \| `(\w+)`", STATES, re.MULTILINE):
        assert Status(int(number)).name.lower() == name


def test_every_statement_that_changes_a_status_is_drawn() -> None:
    sql = {name: statement.text.decode() for name, statement in catalog("any").items()}
    changing = {name for name, text in sql.items() if re.search(CHANGES, text, re.DOTALL)}
    assert changing | {"pruning/partitions", "limiting/admit"} == {name for name in named(STATES) if "/" in name}
    drawn = STATES.split("```mermaid", 1)[1].split("```", 1)[0]
    for name in changing:
        assert name.partition("/")[2] in drawn


@pytest.mark.parametrize("query", QUERIES)
async def test_a_query_of_the_guide_runs(stage: Stage, query: str) -> None:
    await stage.register(7)
    lane = await stage.lane()
    await stage.insert({"lane": lane})
    await stage.ask(query.replace("gen_durable", stage.schema).replace("%", "%%"))
