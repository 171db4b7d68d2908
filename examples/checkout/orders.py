"""Reads orders from a CSV file. All of it is checked before anything is written."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

MOST_PROBLEMS = 10  # that are listed

COLUMNS: dict[str, tuple[str, str]] = {  # name: (pattern of its values, in words)
    "order": (r"[A-Za-z0-9._-]{1,64}", "1 to 64 letters, digits, dots, dashes or underscores"),
    "customer": (r".{1,200}", "a name of 1 to 200 characters"),
    "email": (r"[^@\s]{1,100}@[^@\s]{1,100}", "an address like name@example.com"),
    "item": (r".{1,200}", "a name of 1 to 200 characters"),
    "quantity": (r"0*[1-9][0-9]{0,5}", "a whole number from 1 to 999999"),
    "unit_price": (r"[0-9]{1,7}(\.[0-9]{1,2})?", "an amount like 19.90"),
    "card": (r"[A-Za-z0-9_]{1,64}", "1 to 64 letters, digits or underscores"),
}


class BadOrders(Exception):
    """The file can't be used; the message says where and why."""


@dataclass(frozen=True)
class Order:
    """One line of the file."""

    order: str
    customer: str
    email: str
    item: str
    quantity: int
    unit_price: Decimal
    card: str

    @property
    def cents(self) -> int:
        """What the customer pays."""
        return int(self.quantity * self.unit_price * 100)


def read_orders(path: Path) -> list[Order]:
    """The orders of a CSV file whose first line names the columns; other columns than ``COLUMNS`` are ignored.

    Raises:
        BadOrders: it can't be read, or a value is wrong: the first problems, each with its line and value.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parse(csv.DictReader(file, strict=True), path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadOrders(f"{path} can't be read as a CSV file in UTF-8: {error}") from None


def _parse(lines: csv.DictReader[str], path: Path) -> list[Order]:
    missing = [name for name in COLUMNS if name not in (lines.fieldnames or ())]
    if missing:
        raise BadOrders(f"{path}, line 1: no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}")
    orders: list[Order] = []
    problems: list[str] = []
    line_of: dict[str, int] = {}
    for row in lines:
        found = [
            f"line {lines.line_num}, {name}: {row[name]!r} is not {words}"
            for name, (pattern, words) in COLUMNS.items()
            if not re.fullmatch(pattern, row[name] or "") or not row[name].strip() or not row[name].isprintable()
        ]
        if None in row:
            found.append(f"line {lines.line_num}: {len(row[None])} more values than columns: {row[None]!r}")
        first = line_of.setdefault(row["order"], lines.line_num)
        if row["order"] and first != lines.line_num:
            found.append(f"line {lines.line_num}, order: {row['order']!r} is on line {first} already")
        problems += found
        if not found:
            values = {name: row[name] for name in ("order", "customer", "email", "item", "card")}
            orders.append(Order(**values, quantity=int(row["quantity"]), unit_price=Decimal(row["unit_price"])))
    if problems:
        rest = f"\n  and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise BadOrders(f"{path} has wrong values:\n  " + "\n  ".join(problems[:MOST_PROBLEMS]) + rest)
    if not orders:
        raise BadOrders(f"{path} has no orders: a line for each is needed below the line of column names")
    return orders


def deliveries(orders: Iterable[Order]) -> dict[str, int]:
    """The stock that is delivered: what is ordered of each item, but of one only four fifths.

    So a few orders must fail, and must fail rightly. It is the least ordered of the items ordered five times or more.
    """
    stock = Counter[str]()
    for order in orders:
        stock[order.item] += order.quantity
    scarce = min(((n, item) for item, n in stock.items() if n >= 5), default=None)
    if scarce is not None:
        stock[scarce[1]] = scarce[0] * 4 // 5
    return dict(stock)
