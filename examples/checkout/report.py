"""The verdict: what the file of orders, the database and the provider's audit say, held against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.checkout.orders import Order
from examples.checkout.shop import Books

FEW = 500  # with fewer orders a worker may hold nothing in the moment of the kill
BUSINESS_REASONS = ("out of stock", "card declined: ")


@dataclass(frozen=True)
class Ended:
    """A checkout as the database has it.

    Attributes:
        key, status: from the instance.
        cents: what its result says that was charged; 0 when it failed.
        reason: why it failed.
        history: its transitions: step, attempt, outcome.
    """

    key: str | None
    status: str
    cents: int
    reason: str
    history: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True)
class Killed:
    """The worker that was killed: how many orders had ended then, and when its claims were given back."""

    worker: int
    pid: int
    ended: int
    given_back_after: float | None


@dataclass(frozen=True)
class Facts:
    """All that the verdict looks at; ``provider`` is the provider's own report."""

    orders: Sequence[Order]
    ended: Sequence[Ended]
    books: Books
    provider: dict[str, Any]
    killed: Killed | None


@dataclass(frozen=True)
class Check:
    """One line of the report; ``ok`` is None for what could not be tried."""

    name: str
    ok: bool | None
    found: str


def checks(facts: Facts) -> Iterator[Check]:
    """Every claim of the demo, computed from the facts."""
    yield _all_ended(facts)
    yield _failures(facts)
    yield _effects(facts)
    yield from _kill(facts)
    yield _audit(facts)
    yield _charged_once(facts)
    yield _money(facts)
    yield _stock(facts)


def _done(facts: Facts) -> dict[str, Order]:
    """The orders, as the file has them, whose instance is done."""
    keys = {ended.key for ended in facts.ended if ended.status == "done"}
    return {order.order: order for order in facts.orders if f"order:{order.order}" in keys}


def _all_ended(facts: Facts) -> Check:
    status = Counter(ended.status for ended in facts.ended)
    over = [ended.key for ended in facts.ended if ended.status in ("done", "failed")]
    ok = sorted(over, key=str) == sorted(f"order:{order.order}" for order in facts.orders)
    counts = ", ".join(f"{number:,} {name}" for name, number in sorted(status.items()))
    return Check("Every order ended, once", ok, f"{len(set(over)):,} of {len(facts.orders):,}: {counts}")


def _failures(facts: Facts) -> Check:
    reasons = Counter(ended.reason for ended in facts.ended if ended.status != "done")
    ok = all(reason.startswith(BUSINESS_REASONS) for reason in reasons)
    return Check("Failed for business reasons only", ok, _list(reasons) or "none failed")


def _effects(facts: Facts) -> Check:
    done, books = _done(facts), facts.books
    ok = books.shipments == set(done) and books.receipts == {name: order.cents for name, order in done.items()}
    shipments, receipts = many(len(books.shipments), "shipment"), many(len(books.receipts), "receipt")
    found = f"{shipments}, {receipts} for {many(len(done), 'done order')}"
    return Check("Nothing lost, nothing sent twice", ok, found)


def _kill(facts: Facts) -> Iterator[Check]:
    """Each claim of a dead worker is one ``crashed`` row in a history; the audit says which had begun to run."""
    crashed = [(e.key, step, attempt) for e in facts.ended for step, attempt, what in e.history if what == "crashed"]
    runs = {(key, step, attempt): worker for key, step, attempt, worker in facts.books.runs}
    killed, few = facts.killed, len(facts.orders) < FEW
    if killed is None:
        found = f"not killed: {'too few orders' if few else 'none held a claim at half-way'}"
        yield Check("A worker was killed at work", None if few else False, found)
        return
    after = "" if killed.given_back_after is None else f", given back in {killed.given_back_after:.1f} s"
    held = f"{many(len(crashed), 'claim')}{after}"
    found = f"SIGKILL to process {killed.pid} after {many(killed.ended, 'order')}; it held {held}"
    yield Check("A worker was killed at work", True if crashed else None if few else False, found)
    begun = Counter(run[1] for run in crashed if runs.get(run) == killed.worker)
    again = all((key, step, attempt + 1) in runs for key, step, attempt in crashed)
    idle = len(crashed) - begun.total()
    found = f"{begun.total():,} ({_list(begun) or 'none'}); claims that had not begun a step: {idle:,}"
    yield Check("Steps that ran twice because of it", again, found)


def _audit(facts: Facts) -> Check:
    """The shop's own note of each run that began, against the engine's history of what came of it."""
    runs = Counter((key, step, attempt) for key, step, attempt, _ in facts.books.runs)
    outcomes = Counter(what for ended in facts.ended for _, _, what in ended.history)
    known = {(ended.key, step, attempt) for ended in facts.ended for step, attempt, _ in ended.history}
    ok = max(runs.values(), default=0) <= 1 and set(runs) <= known
    found = f"{many(runs.total(), 'run')} began; history: {_list(outcomes) or 'empty'}"
    return Check("Each run in the history, once", ok, found)


def _charged_once(facts: Facts) -> Check:
    charges, requests = facts.provider["charges"], Counter(facts.provider["requests"])
    times = Counter(charge["order"] for charge in charges)
    keys = {charge["key"] for charge in charges}
    ok = times == Counter(_done(facts).keys()) and len(keys) == len(charges)
    troubles = {
        "refused (503)": requests["unavailable"],
        "too slow": requests["slow"],
        "cut after charging": requests["broken"],
        "repeats answered from their key": requests["replayed"],
    }
    counted = ", ".join((many(len(charges), "charge"), many(len(times), "order"), many(len(keys), "key")))
    found = "; ".join(filter(None, (counted, _list(troubles))))
    return Check("Each order charged exactly once", ok, found)


def _money(facts: Facts) -> Check:
    charged = sum(charge["cents"] for charge in facts.provider["charges"])
    sold = sum(ended.cents for ended in facts.ended if ended.status == "done")
    filed = sum(order.cents for order in _done(facts).values())
    found = f"{_money_text(charged)} charged, {_money_text(sold)} in results, {_money_text(filed)} in the file"
    return Check("The money is right, to the cent", charged == sold == filed, found)


def _stock(facts: Facts) -> Check:
    sold = Counter[str]()
    for order in _done(facts).values():
        sold[order.item] += order.quantity
    stock, reserved = facts.books.stock, facts.books.reservations
    ok = all(available == delivered - sold[item] for item, (delivered, available) in stock.items())
    ok = ok and reserved == {order.order: (order.item, order.quantity) for order in _done(facts).values()}
    delivered, left = sum(d for d, _ in stock.values()), sum(a for _, a in stock.values())
    found = f"{many(len(stock), 'item')}: {delivered:,} delivered - {sold.total():,} sold = {left:,} left"
    return Check("The stock is right", ok, found)


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items()) if number)


def many(number: int, what: str) -> str:
    """``1 order``, ``2,000 orders``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _money_text(cents: int) -> str:
    return f"{cents // 100:,}.{cents % 100:02}"


def show(console: Console, found: Sequence[Check], took: float) -> bool:
    """Prints the report; whether all checks hold."""
    table = Table(title="Report", title_justify="left", show_lines=False)
    for name in ("Check", "Found", ""):
        table.add_column(name, overflow="fold")
    marks = {True: "[green]ok[/]", False: "[bold red]WRONG[/]", None: "[yellow]skipped[/]"}
    for check in found:
        table.add_row(check.name, check.found, marks[check.ok])
    console.print(table)
    wrong, skipped = sum(check.ok is False for check in found), sum(check.ok is None for check in found)
    tried = len(found) - skipped
    verdict = f"{wrong} of {many(tried, 'check')} failed." if wrong else f"All {tried} checks hold."
    console.print(f"{verdict}{f' {skipped} skipped.' if skipped else ''} It took {took:.1f} s.")
    return not wrong
