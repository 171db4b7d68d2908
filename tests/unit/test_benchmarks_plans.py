"""The page of plans: its table and folded plans, how many rows there are of each kind, and what is refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.plans import __main__ as command  # noqa: E402
from benchmarks.plans.calls import CLIENT, Call, calls  # noqa: E402
from benchmarks.plans.page import Explained, page  # noqa: E402

from gen_durable._store.operation import catalog  # noqa: E402


def scan(index: str, loops: int = 1) -> dict[str, Any]:
    return {"Node Type": "Index Scan", "Index Name": index, "Actual Loops": loops}


def test_page_has_a_row_and_a_folded_plan_for_each_statement() -> None:
    plan = {
        "Node Type": "ModifyTable",
        "Operation": "Update",
        "Actual Loops": 1,
        "Shared Hit Blocks": 1609,
        "Shared Read Blocks": 7,
        "Plans": [
            scan("instances_ready"),
            scan("finished_20261201_parent_id_parent_spawn_id_idx"),
            scan("instances_never", loops=0),
            scan("lanes_pkey"),
        ],
    }
    call = Call("claim", "claiming/claim", {}, set(), 0, 0)
    text = page("Plans", "about", [Explained(call, "worker", {"Plan": plan, "Execution Time": 1.234}, "Update on x")])
    assert "| claim | worker | 1.23 | 1,609 | 7 | Update | finished_parent, instances_ready |" in text.splitlines()
    assert "<details><summary>claim (<code>claiming/claim</code>)</summary>\n\n```\nUpdate on x\n```" in text
    assert max(map(len, text.splitlines())) <= 150


@pytest.mark.parametrize("rows", [100_000, 1_000_000, 10_000_000])
def test_stock_has_as_many_rows_as_were_asked_for(rows: int) -> None:
    stock = command.stock_of(rows)
    assert stock.mixed + stock.blocked + 2 * stock.ended + stock.backlog == rows
    assert stock.backlog > rows * 0.4
    assert 500 <= stock.mixed / stock.each <= 510
    assert (stock.mixed // 2) % 20 == 0


def test_calls_name_statements_and_all_their_parameters() -> None:
    statements = catalog("gen_durable")
    for call in calls([(1, 1)], command.stock_of(1_000_000)):
        assert set(statements[call.statement].parameters) <= set(call.values), call.label
    assert set(statements) >= CLIENT


@pytest.mark.parametrize("given", ["5", "x", "1000000,", "1000000,-1"])
def test_too_few_rows_are_refused_with_the_value(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main([f"--rows={given}"])
    assert caught.value.code == 2
    assert f"{given!r}: give numbers of 100000 or more" in capsys.readouterr().err


def test_full_disk_is_told_before_anything_is_filled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000_000))
    assert command.main(["--rows", "1000000,10000000"]) == 2
    error = capsys.readouterr().err
    assert "--rows 10000000 needs about 10.0 GB" in error
    assert "3.0 GB are free" in error


def test_unreachable_server_ends_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--url", "postgresql://x:secret@127.0.0.1:1/x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("no plans: ")
    assert "secret" not in error
