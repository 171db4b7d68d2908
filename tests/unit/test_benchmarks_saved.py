"""Saved runs: what a file holds, the tables made of it, and that nothing secret gets into it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import cli, envs, markdown, plots, registry, report, saved  # noqa: E402
from benchmarks.samples import Measure, Results, Sample  # noqa: E402


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(saved, "HOME", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def results() -> Results:
    out = Results()
    out.server = "PostgreSQL 18.6, fsync=on, synchronous_commit=on"
    costs = {"wal_bytes": 600.0, "commits": 0.01, "client_ms": 0.02, "server_ms": 0.03}
    for engine, values in {"pgqueuer": [20.0, 10.0, 16.0], "gen_durable": [50.0, 30.0, 40.0]}.items():
        for value in values:
            out.add(Measure("A", "no-op jobs", "jobs/s"), engine, Sample(value, 100, costs))
    out.add(Measure("F", "children", "children/s"), "gen_durable", Sample(900.0, 5000, {"plain": 1000.0, "share": 0.9}))
    return out


def test_saved_run_is_the_same_when_it_is_loaded(results: Results) -> None:
    saved.save("night", results, ["--only", "A,F"])
    run = saved.load("night")
    assert run.lines == results.lines()
    assert run.server == results.server
    assert run.command == "python -m benchmarks --only A,F"
    assert run.cpus >= 1


@pytest.mark.parametrize("argv", [["--url", "postgresql://me:secret@db/x"], ["--url=postgresql://me:secret@db/x"]])
def test_url_of_a_server_is_not_saved(results: Results, argv: list[str]) -> None:
    text = saved.save("night", results, [*argv, "--quick"]).read_text()
    assert "secret" not in text
    assert json.loads(text)["command"] == "python -m benchmarks --quick"


def test_missing_run_is_told_with_those_that_there_are(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    saved.save("night", results, [])
    for command in (report.main, plots.main):
        with pytest.raises(SystemExit) as caught:
            command(["day"])
        assert caught.value.code == 2
        assert "'day': there are night; a run saves one with --save day" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b"])
def test_name_that_is_no_file_s_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a result"):
        saved.path_of(name)


def test_markdown_has_every_value_beside_its_engine(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    saved.save("night", results, [])
    assert report.main(["night", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| **gen_durable** | 40 |" in lines
    assert "| pgqueuer | 16 (2.5 ×) |" in lines
    assert "| pgqueuer | 600 | 0.01 | 0.02 | 0.03 | 16 | 10 to 20 | 100 |" in lines
    assert "| F: children | 900 children/s | once | plain 1,000; share 0.9 |" in lines


def test_markdown_has_what_goes_with_values_of_several_engines() -> None:
    results = Results()
    for engine, factor in {"gen_durable": 1.0, "dbos": 4.0}.items():
        waking = Measure("E", "signal to start", "ms", lower_is_better=True)
        results.add(waking, engine, Sample(2.5 * factor, 200, {"p99": 5.5 * factor}))
        rates = {"plain": 1000.0, "share": 0.8 / factor}
        results.add(Measure("F", "children", "children/s"), engine, Sample(800.0 / factor, 500, rates))
    saved.save("peers", results, [])
    lines = markdown.tables(saved.load("peers")).splitlines()
    assert "| Engine | E, ms / p99 | F, children/s |" in lines
    assert "| **gen_durable** | 2.5 / 5.5 | 800 |" in lines
    assert "| dbos | 10 / 22 (4.0 ×) | 200 (4.0 ×) |" in lines
    assert lines.index("| Engine | plain | share | children/s | least to most | n |") > lines.index(
        "F, beside plain jobs:"
    )
    assert "| dbos | 1,000 | 0.2 | 200 | 200 to 200 | 500 |" in lines


def test_markdown_tables_stay_narrow() -> None:
    results = Results()
    for number in range(12):
        for engine in ("gen_durable", "procrastinate"):
            results.add(Measure(f"A.{number}", "jobs", "jobs/s"), engine, Sample(12345.0 + number, 1))
    saved.save("wide", results, [])
    text = markdown.tables(saved.load("wide"))
    assert max(map(len, text.splitlines())) <= 150
    assert text.count("procrastinate") == 2


def test_saved_run_is_shown_as_a_run_is(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    saved.save("night", results, [])
    assert report.main(["night"]) == 0
    out = capsys.readouterr().out
    assert "PostgreSQL 18.6" in out
    assert "2.50 ×" in out


def test_figures_are_kept_where_plots_cannot_be_drawn(
    results: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(arguments: object, *others: object) -> int:
        found = next(other for other in others if isinstance(other, Results))
        vars(found).update(vars(results))
        return 0

    def unavailable(entry: registry.Entry) -> Path:
        raise envs.Unavailable("plots could not be installed: no network")

    monkeypatch.setattr(cli, "_measure", measure)
    monkeypatch.setattr(plots, "python_for", unavailable)
    monkeypatch.setattr(cli, "ROOT", saved.HOME.parent)
    assert cli.main(["--quick", "--json"]) == 0
    assert saved.load(saved.LATEST).lines == results.lines()
    out, err = capsys.readouterr()
    assert json.loads(out)["A"]["ratio"] == {"pgqueuer": 2.5}
    assert "no plots: plots could not be installed: no network" in err


def test_nothing_is_saved_when_nothing_is_to_be(results: Results, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(cli, "_measure", lambda *_: 0)
    assert cli.main(["--quick", "--json", "--save", "none"]) == 0
    assert not home.exists()


def test_quick_run_measures_fewer_peers_unless_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def available(entries: list[registry.Entry], *_: object) -> list[object]:
        seen[:] = [entry.name for entry in entries]
        return []

    monkeypatch.setattr(cli, "_available", available)
    nowhere = ["--only", "A", "--url", "postgresql://x@127.0.0.1:1/x"]
    assert cli.main([*nowhere, "--quick"]) == 2
    assert "pgqueuer" in seen
    assert "absurd" not in seen
    assert cli.main([*nowhere, "--quick", "--peers", "absurd", "--without", "floor,floor_pgbench"]) == 2
    assert seen == ["gen_durable", "absurd"]
    assert cli.main(nowhere) == 2
    assert set(registry.PEERS) < set(seen)


def test_what_draws_needs_nothing_but_matplotlib() -> None:
    """It runs in an environment without the project's dependencies."""
    allowed = {"benchmarks", "matplotlib", "PIL", "__future__"} | sys.stdlib_module_names
    for module in ("draw", "columns", "registry"):
        text = (ROOT / "benchmarks" / f"{module}.py").read_text()
        imported = {
            line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))
        }
        assert imported <= allowed, module
