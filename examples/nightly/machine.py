"""The nightly report: reads the sales of the day before, writes one file for each night."""

from __future__ import annotations

import csv
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

from gen_durable import Context, Done, Machine, Next, Schedule, step

PARIS = ZoneInfo("Europe/Paris")
SALES = Path(__file__).with_name("sales.csv")


def sold_on(day: date) -> dict[str, Decimal]:
    """What each article brought in on a day."""
    totals: dict[str, Decimal] = {}
    with SALES.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["day"] == day.isoformat():
                totals[row["article"]] = totals.get(row["article"], Decimal(0)) + Decimal(row["euro"])
    return totals


class NightlyReport(Machine, queue="reports"):
    """``night`` is the occurrence that started it: it stays the same over retries, restarts and delays."""

    folder: str
    night: datetime | None = None
    totals: dict[str, Decimal] = {}  # noqa: RUF012 - a machine copies its mutable defaults

    @property
    def day(self) -> date:
        """The day that the report is about, in the shop's time zone."""
        assert self.night is not None
        return self.night.astimezone(PARIS).date() - timedelta(days=1)

    @step
    def add_up(self, ctx: Context) -> Next:
        self.totals = sold_on(self.day)
        return Next(self.write)

    @step
    def write(self, ctx: Context) -> Done:
        """The file of a day is written anew when the step runs twice, with the same content: no harm."""
        lines = [f"{article}: {euro} EUR" for article, euro in sorted(self.totals.items())]
        path = Path(self.folder) / f"{self.day}.txt"
        path.write_text("\n".join([f"Sales of {self.day}", *lines, f"total: {sum(self.totals.values())} EUR", ""]))
        return Done({"day": self.day, "total": sum(self.totals.values(), Decimal(0))})


def nightly(folder: Path) -> Schedule:
    """Each night at half past two in Paris, whatever the clocks do in that night."""
    report = NightlyReport(folder=str(folder))
    return Schedule("nightly", "30 2 * * *", report, tz="Europe/Paris", time_field="night")
