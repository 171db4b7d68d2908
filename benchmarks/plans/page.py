"""The plans as a Markdown page: a table of what each statement took, and each plan folded below it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.columns import shown
from benchmarks.plans.calls import Call
from benchmarks.plans.planner import index_of, nodes
from benchmarks.plans.stock import BATCH

TABLES = "instances|finished|transitions|signals|lines|knocks"
LEGEND = (
    f"Each statement ran with warm caches, in batches of {BATCH} (a commit of all kinds: {3 * BATCH}), in a "
    "transaction that was rolled back. `worker` sessions keep the planner to indexes and loops, as a worker's do; "
    "`client` sessions leave it more ways. Pages are shared buffers of 8 KB: found in memory, and read from disk. "
    "Where a function of the schema is called, the plan shows the call alone; its pages count."
)


@dataclass(frozen=True)
class Explained:
    """One statement's execution, as the server explains it to programs and to people."""

    call: Call
    session: str
    answer: dict[str, Any]
    text: str

    @property
    def plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = self.answer["Plan"]
        return plan


def page(title: str, about: str, explained: Sequence[Explained]) -> str:
    """The whole page."""
    parts = [
        f"# {title}",
        _paragraph(about),
        _paragraph(LEGEND),
        "\n".join(_table(explained)),
        *map(_folded, explained),
    ]
    return "\n\n".join(parts) + "\n"


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 130, break_long_words=False, break_on_hyphens=False)


def _table(explained: Sequence[Explained]) -> Iterator[str]:
    yield "| Statement | Session | ms | Pages found | Pages read | Top node | Indexes |"
    yield "|---|---|---|---|---|---|---|"
    for one in explained:
        plan = one.plan
        pages = f"{shown(plan['Shared Hit Blocks'])} | {shown(plan['Shared Read Blocks'])}"
        took = shown(one.answer["Execution Time"])
        yield f"| {one.call.label} | {one.session} | {took} | {pages} | {_top(plan)} | {_indexes(plan)} |"


def _top(plan: dict[str, Any]) -> str:
    return str(plan.get("Operation", plan["Node Type"]))


def _indexes(plan: dict[str, Any]) -> str:
    """The indexes of instances that were walked, by the names that the migrations give them."""
    walked = [index_of(node["Index Name"]) for node in nodes(plan) if node.get("Actual Loops") and "Index Name" in node]
    return ", ".join(sorted({name for name in walked if re.match(TABLES, name)})) or "–"


def _folded(one: Explained) -> str:
    head = f"<details><summary>{one.call.label} (<code>{one.call.statement}</code>)</summary>"
    return f"{head}\n\n```\n{one.text}\n```\n\n</details>"
