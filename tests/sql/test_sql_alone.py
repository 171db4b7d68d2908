"""The statements of a transactional step's lone outcome do to its row what ``commit.sql`` does."""

from __future__ import annotations

import types
from typing import Any, cast

import msgspec
import psycopg
import pytest
from sql_stage import Stage, encode

from gen_durable._runtime.committer import Committer
from gen_durable._runtime.held import Held
from gen_durable._runtime.record import BACK, END, ON, Record, encode_records
from gen_durable._store.connection import _STEADY, fetch
from gen_durable._store.operation import catalog
from gen_durable.events import Hooks

DONE: dict[str, Any] = {"op": END, "keep": 60.0, "took": 0.25, "tried": 2}
NEXT: dict[str, Any] = {"op": ON, "step": "two", "kind": 0, "ran": "one", "took": 0.25, "tried": 2}
STATE = msgspec.Raw(b'{"n":2,"text":"\'quoted\' \\\\ %"}')
ALONE: dict[str, dict[str, Any]] = {
    "done": DONE,
    "done, a result": DONE | {"result": msgspec.Raw(b'{"paid":5}')},
    "done, a state": DONE | {"state": STATE},
    "done, for ever": DONE | {"keep": None},
    "done, by name": DONE | {"ran": "one"},
    "next": NEXT,
    "next, a state": NEXT | {"state": STATE, "history": 2},
    "next, no history": NEXT | {"history": 0},
    "next, by a handler": NEXT | {"error": {"type": "ValueError", "message": "it's 5 %"}},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "failed": DONE | {"kind": 4, "error": {"type": "Stop"}},
    "done by a handler": DONE | {"error": {"type": "ValueError"}},
    "done, no history": DONE | {"history": 0},
    "done, with its state": DONE | {"history": 2},
    "retry": {"op": BACK, "step": "one", "kind": 1, "delay": 0.0, "attempt": 1, "crashes": 0},
    "next, limited": NEXT | {"limits": True, "gate": "ck"},
}


def claimed(id_: int, rev: int, **fields: Any) -> Held:
    plain = {"parent_id": None, "waits": None, "key": None, "gate": None, "spawning": None}
    return cast("Held", types.SimpleNamespace(id=id_, rev=rev, **(plain | fields)))


def committer_of(stage: Stage) -> Committer:
    nobody: Any = None
    return Committer(nobody, stage.sql, 7, nobody, Hooks())


async def picture(stage: Stage, id_: int) -> dict[str, Any]:
    """All that the tables hold of an instance, without what differs between any two."""
    found: dict[str, Any] = {}
    own = {
        "id",
        "instance_id",
        "inserted_at",
        "updated_at",
        "finished_at",
        "expires_at",
        "due_at",
        "at",
        "key",
        "sent_at",
    }
    tables = {"instances": "id", "finished": "id", "transitions": "instance_id", "signals": "instance_id"}
    for table, column in tables.items():
        rows = await stage.ask(f"SELECT to_jsonb(t) FROM {{schema}}.{table} t WHERE {column} = %s", id_)
        found[table] = [
            {name: value for name, value in msgspec.json.decode(row).items() if name not in own} for (row,) in rows
        ]
    span = (
        "SELECT CASE WHEN isfinite(expires_at) THEN expires_at - finished_at END FROM {schema}.finished WHERE id = %s"
    )
    found["keeps"] = await stage.ask(span, id_)
    return found


@pytest.mark.parametrize("inbox", [0, 2])
@pytest.mark.parametrize("kind", ALONE)
async def test_a_lone_outcome_leaves_what_a_group_s_would(stage: Stage, kind: str, inbox: int) -> None:
    """R3, R5: row for row and column for column, with signals in the inbox too."""
    pictures = []
    for alone in (False, True):
        id_, rev, _ = await stage.held(state={"n": 1}, step="one")
        for n in range(inbox):
            await stage.send(id_, "go", n, dedup="d" if n else None)
        record = Record(id_, rev, mark=None, **ALONE[kind])
        async with stage.main.transaction():
            if alone:
                record.mark = str(id_)
                await stage.ask(f"SET LOCAL gen_durable.step = '{id_}'")
                request = committer_of(stage)._alone(claimed(id_, rev), record)
                assert request is not None
                rows = await fetch(stage.main, request)
            else:
                rows = await stage.run(
                    "committing/commit", worker=7, outcomes=encode_records([record]).decode(), first="[]", wake=[]
                )
        assert [row for row in rows if row[1] >= 0] == [(id_, rev + 1, None)]
        pictures.append(await picture(stage, id_))
    assert pictures[0] == pictures[1]
    assert pictures[0]["finished" if kind.startswith("done") else "instances"]


@pytest.mark.parametrize("kind", TOGETHER)
def test_what_needs_more_is_not_sent_alone(stage_sql: Any, kind: str) -> None:
    """R5: it goes by commit.sql itself; so does what has a parent, a key to reserve, or signals to consume."""
    committer = stage_sql
    assert committer._alone(claimed(1, 1), Record(1, 1, mark="1", **TOGETHER[kind])) is None
    for fields in ({"parent_id": 5}, {"key": "k"}, {"waits": object()}):
        assert committer._alone(claimed(1, 1, **fields), Record(1, 1, mark="1", **DONE)) is None
    assert committer._alone(claimed(1, 1), Record(1, 1, **DONE)) is None, "the flusher's have no mark"


@pytest.fixture
def stage_sql() -> Committer:
    nobody: Any = None
    return Committer(nobody, catalog("any"), 7, nobody, Hooks())


@pytest.mark.parametrize("lost", ["rev", "worker", "mark", "no mark"])
@pytest.mark.parametrize("how", ["done", "next", "group", "group going back"])
async def test_a_lost_claim_or_mark_fails_the_statement(stage: Stage, how: str, lost: str) -> None:
    """R4, R5: so that a COMMIT sent behind it in the same message can't take effect."""
    id_, rev, _ = await stage.held(state={"n": 1}, step="one")
    fields = {"done": DONE, "next": NEXT, "group": DONE, "group going back": TOGETHER["retry"]}[how]
    record = Record(id_, rev - (lost == "rev"), mark=str(id_), **fields)
    committer = committer_of(stage)
    committer._worker = 8 if lost == "worker" else 7
    request = committer._alone(claimed(id_, record.rev), record) if how in ("done", "next") else None
    if request is None:
        request = stage.sql["committing/commit"].bind(
            worker=committer._worker, outcomes=encode_records([record]).decode(), first=encode([]), wake=[]
        )
    before = await picture(stage, id_)
    await stage.ask("BEGIN")
    if lost != "no mark":
        await stage.ask(f"SET LOCAL gen_durable.step = '{5 if lost == 'mark' else id_}'")
    with pytest.raises(psycopg.errors.InvalidTextRepresentation) as raised:
        await fetch(stage.main, request)
    assert f"{'mark' if 'mark' in lost else 'claim'} lost: {id_}" in str(raised.value)
    await stage.ask("COMMIT")
    assert await picture(stage, id_) == before


async def test_steady_is_what_the_engine_s_sessions_are(stage: Stage) -> None:
    """ADR 5: a step's transaction plans our statements as any session of the engine's; but its search path stays."""
    connection = await stage.connect()
    await stage.ask("SET search_path = public", on=connection)
    await stage.ask("BEGIN", on=connection)
    await fetch(connection, stage.sql["transacting/steady"].bind())
    for name, value in _STEADY.items():
        found = await stage.value("SELECT current_setting(%s)", name, on=connection)
        assert (found == value) == (name != "search_path"), name
    await stage.ask("COMMIT", on=connection)
