"""What a drain did, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from gen_durable.machine import spec_of

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """The committed outcomes of a drain.

    Attributes:
        outcomes: how often each came: ``next``, ``retry``, ``sleep``, ``done``, ``failed``, ``cancelled`` and so on, as
            the history names them; ``stale`` for one that was refused, because the claim had been taken away.
        steps: the same for each step: ``tally.steps["Checkout", "pay"]["done"]``, by the machine's stored name.
        advanced: the seconds by which the drain brought the clock forward.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    steps: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    advanced: float = 0.0

    @property
    def runs(self) -> int:
        """How many times a step ran."""
        return self.outcomes.total()

    def count(self, machine: Any = None, step: str | None = None, outcome: str | None = None) -> int:
        """How many runs there were of this machine (or job), of this step, with this outcome; None: of any.

        Args:
            machine: its class or function, or its stored name.

        Raises:
            ConfigurationError: it is neither.
        """
        name = machine if machine is None or isinstance(machine, str) else spec_of(machine).name
        return sum(
            counts.total() if outcome is None else counts[outcome]
            for (of, at), counts in self.steps.items()
            if name in (None, of) and step in (None, at)
        )

    def add(self, machine: str, step: str, outcome: str) -> None:
        """Counts one."""
        self.outcomes[outcome] += 1
        self.steps.setdefault((machine, step), Counter())[outcome] += 1
