"""The benchmarks' own logic: arguments, statistics, ratios, the JSON form, what is skipped."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import cli, envs, registry, report, run  # noqa: E402
from benchmarks.adapter import Asking, Families, Signals  # noqa: E402
from benchmarks.agents import AgentFailed  # noqa: E402
from benchmarks.board import MARKS, Board  # noqa: E402
from benchmarks.samples import Measure, Results, Sample, percentile  # noqa: E402
from benchmarks.workloads import Sizes, Task, letters, tasks  # noqa: E402
from benchmarks.workloads.catalogue import BRIEF, BRIEF_OF_PEERS  # noqa: E402
from benchmarks.workloads.rates import in_turns  # noqa: E402

RATE = Measure("A", "no-op jobs", "jobs/s")
DELAY = Measure("D", "insert to start", "ms", lower_is_better=True)


def measured(measure: Measure, **values: list[float]) -> Results:
    results = Results()
    for engine, samples in values.items():
        for value in samples:
            results.add(measure, engine, Sample(value, 100, {"wal_bytes": value / 2}))
    return results


def test_json_holds_median_spread_and_ratio_per_engine() -> None:
    results = measured(RATE, gen_durable=[50.0, 30.0, 40.0], pgqueuer=[20.0, 10.0, 16.0])
    out = json.loads(json.dumps(results.as_json()))
    assert list(out) == ["A"]
    own = out["A"]["gen_durable"]
    assert (own["median"], own["min"], own["max"], own["reps"]) == (40, 30, 50, 3)
    assert own["wal_bytes"] == 20
    assert out["A"]["ratio"] == {"pgqueuer": 2.5}


def test_ratio_above_one_means_better_also_where_less_is_better() -> None:
    assert measured(DELAY, gen_durable=[2.0], pgqueuer=[5.0]).ratios("D") == {"pgqueuer": 2.5}


def test_no_ratio_without_the_own_engine() -> None:
    assert measured(RATE, pgqueuer=[5.0], floor=[9.0]).ratios("A") == {}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)])
def test_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_table_names_every_engine_and_ratio() -> None:
    console = Console(width=report.WIDTH, record=True, file=io.StringIO())
    report.show(measured(RATE, gen_durable=[40.0], pgqueuer=[16.0]), console)
    text = console.export_text()
    assert "pgqueuer" in text
    assert "2.50 ×" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--only", "X"],
            "'X' is no workload and no key of one: there are A, B, C, D, E, F, G, H, I, J, K, L, M, N, and the keys A,",
        ),
        (["--only", "A,F.huge"], "'F.huge' is no workload and no key of one"),
        (["--only", "A.3"], "'A.3' is no workload and no key of one"),
        (["--only", ""], "'' is no workload and no key of one"),
        (["--peers", "nobody"], "unknown engine 'nobody': there are"),
        (["--reps", "0"], "'0' is not a number of 1 or more"),
        (["--set", "gen_durable"], "is not ENGINE.KEY=VALUE"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_unreachable_server_ends_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--only", "A", "--peers", "none", "--url", "postgresql://x:secret@127.0.0.1:1/x"]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert "no server to measure on" in error
    assert "secret" not in error


def keys(only: str, procs: list[int]) -> list[str]:
    return [task.key for task in tasks(only.split(","), procs, Sizes())]


def test_a_letter_stands_for_all_keys_of_its_workload_and_the_given_processes() -> None:
    assert keys("A", [1, 2]) == ["A", "A.2"]
    assert keys("a", [3]) == ["A.3"]
    assert keys("F,C", [1]) == ["C", "C.bulk", "F", "F.large"]


def test_a_key_stands_for_itself_whatever_the_processes() -> None:
    assert keys("F.large,C.bulk", [1]) == ["C.bulk", "F.large"]
    assert keys("A.2,c.BULK", [1]) == ["A.2", "C.bulk"]
    assert keys("A,F.large", [1]) == ["A", "F.large"]


def asked_for(*argv: str) -> list[Task]:
    return cli._todo(cli.parser().parse_args(argv))


def test_without_only_everything_is_measured() -> None:
    every = [task.key for task in asked_for()]
    assert every == keys(",".join(letters()), [1, 2])
    assert [task.key for task in asked_for("--only", "A,J.alone")] == ["A", "A.2", "J.alone"]


def test_a_quick_run_without_only_leaves_out_what_cant_be_small_and_most_of_the_peers() -> None:
    brief = asked_for("--quick")
    every = {task.base for task in asked_for()}
    assert {task.base for task in brief} == BRIEF < every
    assert not {task.letter for task in brief} & set("KLMN")
    own, peer = registry.find("gen_durable"), registry.find("pgqueuer")
    assert all(task.fits(own) for task in brief)
    assert {task.key for task in brief if task.fits(peer)} == BRIEF_OF_PEERS
    assert {task.key for task in asked_for("--quick", "--only", "C,K") if task.fits(peer)} == {"C", "C.bulk"}
    assert {task.key for task in brief if task.fits(registry.find("dbos"))} == BRIEF_OF_PEERS
    assert {task.key for task in asked_for("--quick", "--only", "K")} == set(keys("K", [1]))


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("gen_durable", {"E", "E.other", "E.idle", "E.parked", "F", "F.large"}),
        ("dbos", {"E", "E.other", "F"}),
        ("absurd", {"E", "E.other", "F"}),
        ("awa", {"E", "E.other"}),
        ("oban", set()),
        ("floor", set()),
    ],
)
def test_signals_and_families_are_measured_where_an_engine_has_them(engine: str, expected: set[str]) -> None:
    entry = registry.find(engine)
    assert {task.key for task in asked_for("--only", "E,F") if task.fits(entry)} == expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], (5, 3)),
        (["--only", "A"], (5, 3)),
        (["--quick"], (1, 1)),
        (["--quick", "--only", "A"], (3, 1)),
        (["--quick", "--reps", "2"], (2, None)),
    ],
)
def test_repetitions_of_an_engine_and_of_a_slow_one(argv: list[str], expected: tuple[int, int | None]) -> None:
    assert cli._repetitions(cli.parser().parse_args(argv)) == expected


def test_what_takes_long_is_repeated_less_often() -> None:
    few = {task.base for task in asked_for() if task.most}
    assert {"G", "H.rate", "I.B", "K.stats", "L.8", "M.parked", "N", "E.idle", "F.large"} <= few
    assert not few & {"A", "B", "B.step", "C", "D", "E", "F", "J"}
    results = Results()
    todo = [Task(Measure("K.stats", "", "share"), lambda bench: Sample(1.0, 1))]

    class FakeBench:
        entry = registry.find("gen_durable")

    assert run.measure(todo, [FakeBench()], 5, results, Console(quiet=True)) == 0  # type: ignore[list-item]
    assert results.summary("K.stats", "gen_durable")["reps"] == 3


def test_runs_in_turns_give_the_share_of_the_plain_rate() -> None:
    turns: list[str] = []

    def taking(name: str, rates: list[float]) -> Callable[[], Sample]:
        def run() -> Sample:
            turns.append(name)
            return Sample(rates.pop(0), 7, {"wal_bytes": 10.0 * len(turns), "others_pct": float(len(turns))})

        return run

    sample = in_turns(taking("own", [30.0, 60.0]), taking("plain", [100.0, 50.0]), 2)
    assert turns == ["plain", "own", "own", "plain"]
    assert (sample.value, sample.count) == (40.0, 7)
    assert sample.extras == {
        "wal_bytes": 25.0,
        "plain_wal": 25.0,
        "plain": pytest.approx(66.667, abs=0.001),
        "share": pytest.approx(0.6),
        "others_pct": 4.0,
    }


def test_no_key_is_there_twice() -> None:
    every = keys(",".join(letters()), [1, 2])
    assert len(every) == len(set(every))


def test_settings_and_share_of_a_part_of_a_workload_are_its_own_before_the_workload_s() -> None:
    entry = registry.Entry(
        name="x",
        module="x",
        done="",
        left="",
        share={"B": 0.5, "B.step": 0.1},
        options={"*": {"a": 1, "b": 1, "c": 1}, "B": {"b": 2, "c": 2}, "B.step": {"c": 3}},
    )
    assert entry.settings("A") == {"a": 1, "b": 1, "c": 1}
    assert entry.settings("B") == {"a": 1, "b": 2, "c": 2}
    assert entry.settings("B.step") == {"a": 1, "b": 2, "c": 3}
    assert (entry.scale("B.step"), entry.scale("B.other"), entry.scale("C")) == (0.1, 0.5, 1.0)


def test_every_registered_engine_has_its_module() -> None:
    for entry in registry.ENTRIES:
        path = ROOT / Path(*entry.module.split(".")).with_suffix(".py")
        text = path.read_text()
        assert "class Adapter" in text, entry.name
        assert entry.workloads <= registry.ALL
        for workload, protocol in {"D.result": Asking, "E": Signals, "F": Families}.items():
            for method in set(vars(protocol)) & {"ask", "signal", "parked", "left", "family"}:
                assert workload not in entry.workloads or f"async def {method}(" in text, (entry.name, method)


def test_engine_that_needs_a_newer_python_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(envs, "HOME", tmp_path)
    entry = registry.Entry(name="future", module="none", done="", left="", requirements=("future",), python=(4, 0))
    with pytest.raises(envs.Unavailable, match=r"future needs Python 4\.0 or newer; this is 3"):
        envs.python_for(entry)


def test_board_is_shared_between_two_processes_worth_of_mappings(tmp_path: Path) -> None:
    reader = Board(tmp_path / "board")
    first, second = Board(tmp_path / "board", 0), Board(tmp_path / "board", 1)
    first.hit()
    second.mark(MARKS - 1)
    assert reader.hits() == 2
    assert reader.marked(MARKS - 1) >= reader.first() > 0
    reader.clear()
    assert (first.hits(), second.first()) == (0, 0.0)


def test_failed_engine_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeBench:
        def __init__(self, name: str) -> None:
            self.entry = registry.find(name)

    def sample(bench: FakeBench) -> Sample:
        if bench.entry.name == "pgqueuer":
            raise AgentFailed("pgqueuer: it broke")
        return Sample(1.0, 1)

    results = Results()
    console = Console(stderr=True, quiet=True)
    benches = [FakeBench("gen_durable"), FakeBench("pgqueuer")]
    failures = run.measure([Task(RATE, sample)], benches, 3, results, console)  # type: ignore[arg-type]
    assert failures == 1
    assert results.summary("A", "gen_durable")["reps"] == 3
    assert results.engines("A") == ["gen_durable"]


def test_what_means_the_same_to_an_engine_is_measured_once() -> None:
    class FakeBench:
        def __init__(self, name: str) -> None:
            self.entry = registry.find(name)

    asked: list[tuple[str, str]] = []

    def running(key: str) -> Callable[[FakeBench], Sample]:
        def sample(bench: FakeBench) -> Sample:
            asked.append((key, bench.entry.name))
            return Sample(float(len(asked)), 1)

        return sample

    benches = [FakeBench("gen_durable"), FakeBench("pgqueuer")]
    console = Console(stderr=True, quiet=True)
    for only, expected in (
        ("B,B.step", [("B", "gen_durable"), ("B", "pgqueuer"), ("B.step", "gen_durable")]),
        ("B.step", [("B.step", "gen_durable"), ("B.step", "pgqueuer")]),
    ):
        results = Results()
        asked.clear()
        todo = [replace(task, run=running(task.key)) for task in tasks(only.split(","), [1], Sizes())]  # type: ignore[arg-type]
        assert run.measure(todo, benches, 1, results, console) == 0  # type: ignore[arg-type]
        assert asked == expected
        assert set(results.engines("B.step")) == {"gen_durable", "pgqueuer"}
        assert set(results.ratios("B.step")) == {"pgqueuer"}


def test_peer_modules_need_only_their_own_packages() -> None:
    """What runs in a peer's environment must not import the project's dependencies."""
    for module in ("agent", "board", "adapter", "__init__", "engines/__init__"):
        text = (ROOT / "benchmarks" / f"{module}.py").read_text()
        imported = {
            line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))
        }
        for name in imported - {"benchmarks", "__future__"}:
            assert name in sys.stdlib_module_names, (module, name)
    assert importlib.util.find_spec("benchmarks.agent")
