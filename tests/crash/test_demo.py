"""The demo, whole: what it claims is computed, and can turn out to be false."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from examples.checkout.orders import BadOrders, Order, deliveries, read_orders  # noqa: E402
from examples.checkout.report import Ended, Facts, Killed, checks, show  # noqa: E402
from examples.checkout.shop import Books  # noqa: E402

SHIPPED = ROOT / "examples/checkout/orders.csv"
LARGE = ["SO-LARGE", "Ann", "ann@example.com", "A roaster", "5", "990.00", "tok_visa"]  # of which 4 are delivered
DEMO = [sys.executable, "-m", "examples.checkout"]


@pytest.fixture
def own(schema: str, database_url: str) -> Iterator[str]:
    """The test's schema; the demo's second one goes with it."""
    yield schema
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        connection.execute(f"DROP SCHEMA IF EXISTS {schema}_shop CASCADE".encode())


@pytest.fixture
def some_orders(tmp_path: Path) -> Path:
    """179 orders of the shipped file, among them all whose card is refused, and one that must run out of stock."""
    with SHIPPED.open(newline="") as file:
        head, *rows = csv.reader(file)
    rows.sort(key=lambda row: (row[-1] != "tok_declined", row[0]))
    path = tmp_path / "orders.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *sorted(rows[:179]), LARGE])
    return path


@pytest.fixture
def demo(database_url: str, own: str) -> Callable[..., subprocess.Popen[str]]:
    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "GEN_DURABLE_DATABASE_URL": database_url}
        command = [*DEMO, "--schema", own, *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=_interruptible,
        )  # fmt: skip

    return start


def _interruptible() -> None:
    """A shell's background jobs ignore SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def processes_of(schema: str) -> list[int]:
    """The demo's children that live: all of them have the schema in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"CHECKOUT_SCHEMA={schema}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_r1_r2_r3_the_demo_ends_with_every_check_true_and_leaves_no_process(
    demo: Callable[..., subprocess.Popen[str]], own: str, some_orders: Path, database_url: str
) -> None:
    """R1, R2, R3: a worker is killed at work; every order ends, each effect is there once."""
    for _ in range(2):  # it works again when run again
        running = demo("--orders", str(some_orders))
        out, err = running.communicate(timeout=90)
        assert running.returncode == 0, out + err
        assert "All 9 checks hold." in out
        assert "WRONG" not in out
        assert "SIGKILL" in out
        assert "180 of 180" in out
        assert "card declined: insufficient funds" in out
        assert "1 out of stock" in out
        assert processes_of(own) == []
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            f"SELECT count(*), count(DISTINCT key), bool_and(finished_at IS NOT NULL) FROM {own}.all_instances".encode()
        ).fetchall()
        crashed = connection.execute(f"SELECT count(*) FROM {own}.transitions WHERE outcome = 6".encode()).fetchone()
    assert rows == [(180, 180, True)]
    assert crashed is not None
    assert crashed[0] > 0


def test_a_provider_that_forgets_its_keys_makes_the_demo_fail(
    demo: Callable[..., subprocess.Popen[str]], own: str, some_orders: Path
) -> None:
    """The verdict is real: without idempotency some orders are charged twice, and the demo says so."""
    running = demo("--orders", str(some_orders), "--forgetful")
    out, err = running.communicate(timeout=90)
    assert running.returncode == 1, out + err
    wrong = [line for line in out.splitlines() if "WRONG" in line]
    assert [line.split("│")[1].strip() for line in wrong] == [
        "Each order charged exactly once",
        "The money is right, to the cent",
    ]
    assert processes_of(own) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process(
    demo: Callable[..., subprocess.Popen[str]], own: str, number: signal.Signals
) -> None:
    """Ended by a signal, even by SIGKILL, it takes its workers and its provider with it."""
    running = demo()
    assert running.stdout is not None
    while "starting two workers" not in running.stdout.readline():
        assert running.poll() is None
    deadline = time.monotonic() + 20
    while len(processes_of(own)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(number)
    out, err = running.communicate(timeout=30)
    assert running.returncode == (-9 if number is signal.SIGKILL else 130), out + err
    while processes_of(own):
        assert number is signal.SIGKILL, "the demo waits for its children, unless it is killed itself"
        assert time.monotonic() < deadline + 20
        time.sleep(0.05)


def test_bad_rows_are_named_and_nothing_is_written(
    demo: Callable[..., subprocess.Popen[str]], own: str, some_orders: Path, database_url: str
) -> None:
    lines = some_orders.read_text().splitlines()
    lines[7] = 'SO-1,Ann,ann@example.com,"Cup, blue",two,9.90,tok_visa'
    some_orders.write_text("\n".join(lines))
    running = demo("--orders", str(some_orders))
    _, err = running.communicate(timeout=30)
    assert running.returncode == 2
    assert "line 8, quantity: 'two' is not a whole number from 1 to 999999" in err
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", (own,)).fetchall() == []


def test_a_schema_of_somebody_else_is_left_alone(
    demo: Callable[..., subprocess.Popen[str]], migrated: str, database_url: str
) -> None:
    running = demo()
    _, err = running.communicate(timeout=30)
    assert running.returncode == 2
    assert "was not made by this demo" in err
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT to_regclass(%s) IS NULL", (f"{migrated}.instances",)).fetchall() == [(False,)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column order, customer"),
        ("order,customer,email,item,quantity,unit_price,card\n", "has no orders"),
        ("order,customer,email,item,quantity,unit_price,card\n1,A,a@b,x,1,1,v\n1,A,a@b,x,1,1,v\n", "order: '1'"),
        ("order,customer,email,item,quantity,unit_price,card\n1,A,a@b,x,0,1,v\n", "line 2, quantity: '0'"),
        ("order,customer,email,item,quantity,unit_price,card\n1,A,a@b,x,1,1.999,v\n", "line 2, unit_price: '1.999'"),
        ("order,customer,email,item,quantity,unit_price,card\n1,A,a@b,x,1,NaN,v\n", "line 2, unit_price: 'NaN'"),
        ("order,customer,email,item,quantity,unit_price,card\n1,A,ab,x,1,1,v\n", "line 2, email: 'ab'"),
        ("order,customer,email,item,quantity,unit_price,card\n1,A\0,a@b,x,1,1,v\n", "'A\\x00'"),
        ("order,customer,email,item,quantity,unit_price,card\n1,A,a@b,x,1,1\n", "line 2, card: None"),
        ("order,customer,email,item,quantity,unit_price,card\n1,A,a@b,x,1,1,v,w\n", "line 2: 1 more values"),
        ("order,customer,email,item,quantity,unit_price,card\n1,A,a@b,\"x,1,1,v\n", "unexpected end of data"),
    ],
)  # fmt: skip
def test_orders_that_can_not_be_read_are_refused_with_line_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "orders.csv"
    path.write_text(text)
    with pytest.raises(BadOrders) as refusal:
        read_orders(path)
    assert message in str(refusal.value)


def test_the_shipped_file_has_2000_orders_and_a_few_that_must_fail() -> None:
    orders = read_orders(SHIPPED)
    short = {item for item, n in deliveries(orders).items() if n < sum(o.quantity for o in orders if o.item == item)}
    assert len(orders) == 2000
    assert len(short) == 1
    assert 0 < sum(order.card == "tok_declined" for order in orders) < 20


# Three orders: one paid after its worker was killed in the charge, one out of stock, one refused.
ORDERS = [
    Order(name, "Ann", "ann@example.com", item, 2, Decimal("10.50"), card)
    for name, item, card in [("A", "cup", "tok_visa"), ("B", "pot", "tok_visa"), ("C", "cup", "tok_declined")]
]
PATH_OF_A = (
    ("reserve", 0, "next"),
    ("charge", 0, "crashed"),
    ("charge", 1, "next"),
    ("ship", 0, "next"),
    ("receipt", 0, "done"),
)
PATH_OF_C = (("reserve", 0, "next"), ("charge", 0, "next"), ("give_back", 0, "failed"))
TRUE = Facts(
    orders=ORDERS,
    ended=[
        Ended("order:A", "done", 2100, "", PATH_OF_A),
        Ended("order:B", "failed", 0, "out of stock", (("reserve", 0, "failed"),)),
        Ended("order:C", "failed", 0, "card declined: insufficient funds", PATH_OF_C),
    ],
    books=Books(
        stock={"cup": (4, 2), "pot": (1, 1)},
        reservations={"A": ("cup", 2)},
        shipments={"A"},
        receipts={"A": 2100},
        runs=[
            *(("order:A", step, attempt, 1 + attempt) for step, attempt, _ in PATH_OF_A),
            ("order:B", "reserve", 0, 1),
            *(("order:C", step, attempt, 1) for step, attempt, _ in PATH_OF_C),
        ],
    ),
    provider={"requests": {"charged": 1}, "charges": [{"charge": "ch_1", "key": "k", "order": "A", "cents": 2100}]},
    killed=Killed(worker=1, pid=42, ended=1, given_back_after=1.0),
)


def with_books(**changes: Any) -> Facts:
    return dataclasses.replace(TRUE, books=dataclasses.replace(TRUE.books, **changes))


def with_ended(place: int, orders: list[Order] = ORDERS, **changes: Any) -> Facts:
    ended = list(TRUE.ended)
    ended[place] = dataclasses.replace(ended[place], **changes)
    return dataclasses.replace(TRUE, orders=orders, ended=ended)


def with_charges(*charges: dict[str, Any]) -> Facts:
    return dataclasses.replace(TRUE, provider={"requests": {}, "charges": list(charges)})


CHARGE = TRUE.provider["charges"][0]
TAMPERED = [
    (dataclasses.replace(TRUE, ended=TRUE.ended[:2]), "Every order ended, once"),
    (dataclasses.replace(TRUE, ended=[*TRUE.ended, TRUE.ended[1]]), "Every order ended, once"),
    (with_ended(1, status="runnable", reason="still runnable at 'reserve'"), "Every order ended, once"),
    (with_ended(1, reason="KeyError: 'cup'"), "Failed for business reasons only"),
    (with_books(shipments=set()), "Nothing lost, nothing sent twice"),
    (with_books(shipments={"A", "B"}), "Nothing lost, nothing sent twice"),
    (with_books(receipts={"A": 2101}), "Nothing lost, nothing sent twice"),
    (dataclasses.replace(TRUE, killed=None, orders=ORDERS * 200), "A worker was killed at work"),
    (with_ended(0, orders=ORDERS * 200, history=PATH_OF_A[:1] + PATH_OF_A[2:]), "A worker was killed at work"),
    (with_books(runs=[run for run in TRUE.books.runs if run[2] == 0]), "Steps that ran twice because of it"),
    (with_books(runs=[*TRUE.books.runs, TRUE.books.runs[0]]), "Each run in the history, once"),
    (with_books(runs=[*TRUE.books.runs, ("order:B", "charge", 0, 1)]), "Each run in the history, once"),
    (with_charges(), "Each order charged exactly once"),
    (with_charges(CHARGE, {**CHARGE, "key": "k2"}), "Each order charged exactly once"),
    (with_charges(CHARGE, {**CHARGE, "key": "k2", "order": "B"}), "Each order charged exactly once"),
    (with_charges({**CHARGE, "cents": 2099}), "The money is right, to the cent"),
    (with_ended(0, cents=2099), "The money is right, to the cent"),
    (with_books(stock={"cup": (4, 0), "pot": (1, 1)}), "The stock is right"),
    (with_books(reservations={"A": ("cup", 2), "C": ("cup", 2)}), "The stock is right"),
]


def test_true_facts_pass_every_check() -> None:
    found = list(checks(TRUE))
    assert [check.name for check in found if not check.ok] == []
    assert len(found) == 9
    assert next(check.found for check in found if "twice because" in check.name).startswith("1 (1 charge);")


def test_without_a_kill_among_a_few_orders_the_other_checks_decide() -> None:
    """Nobody held a claim half-way: that is no fault, but it is said."""
    shown = io.StringIO()
    console = Console(width=120, file=shown)
    few = dataclasses.replace(TRUE, killed=None)
    assert show(console, list(checks(few)), 1.0)
    out = shown.getvalue()
    assert "not killed: too few orders" in out
    assert "All 7 checks hold. 1 skipped." in out
    assert not show(console, list(checks(dataclasses.replace(few, ended=TRUE.ended[:2]))), 1.0)


def test_three_orders_pass(demo: Callable[..., subprocess.Popen[str]], own: str, some_orders: Path) -> None:
    """The demo with a file of one's own, however short."""
    some_orders.write_text("".join(some_orders.read_text().splitlines(keepends=True)[:4]))
    running = demo("--orders", str(some_orders))
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, out + err
    assert "3 orders inserted" in out
    assert "all ended; checking" in out
    assert processes_of(own) == []


def test_when_the_time_is_up_the_workers_are_stopped_before_the_report(
    demo: Callable[..., subprocess.Popen[str]], own: str
) -> None:
    """The facts stand still while they are gathered: no order is said to be executing."""
    running = demo("--timeout", "0.5")
    out, err = running.communicate(timeout=60)
    assert running.returncode == 1, out + err
    assert "the time is up" in out
    assert "Every order ended, once" in out
    assert "still executing" not in out
    assert processes_of(own) == []


@pytest.mark.parametrize(("facts", "name"), TAMPERED)
def test_each_check_fails_when_its_facts_are_tampered_with(facts: Facts, name: str) -> None:
    assert name in [check.name for check in checks(facts) if not check.ok]
