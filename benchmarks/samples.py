"""What a run has measured: samples, their medians and spread, and the ratios between engines."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.registry import OWN

EXTRAS = (
    "wal_bytes",
    "commits",
    "client_ms",
    "server_ms",
    "p99",
    "trip_ms",
    "busy_pct",
    "rate",
    "plain_wal",
    "plain",
    "share",
    "alone",
    "written",
    "updates",
    "dead",
    "others_pct",
)


@dataclass(frozen=True)
class Sample:
    """One repetition: the value in the unit of its measure, and per-job costs where they were seen."""

    value: float
    count: int
    extras: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """One line of the result: ``A`` with one worker process, ``A.2`` with two, ``C.bulk``, …"""

    key: str
    title: str
    unit: str
    lower_is_better: bool = False


@dataclass(frozen=True)
class Line:
    """What is known of one measure: a summary per engine, and how many times better this engine is than each."""

    measure: Measure
    engines: dict[str, dict[str, Any]]
    ratios: dict[str, float]


class Results:
    """All samples of a run, by measure and engine, in the order in which they first came."""

    def __init__(self) -> None:
        self.measures: dict[str, Measure] = {}
        self.server = ""
        self._samples: dict[str, dict[str, list[Sample]]] = {}

    def add(self, measure: Measure, engine: str, sample: Sample) -> None:
        self.measures[measure.key] = measure
        self._samples.setdefault(measure.key, {}).setdefault(engine, []).append(sample)

    def share(self, key: str, measure: Measure, engine: str) -> bool:
        """Let an engine's samples of one measure be those of another one too; whether there are any."""
        samples = self._samples.get(key, {}).get(engine, [])
        for sample in samples:
            self.add(measure, engine, sample)
        return bool(samples)

    def engines(self, key: str) -> list[str]:
        """The engines that have samples of this measure."""
        return list(self._samples[key])

    def summary(self, key: str, engine: str) -> dict[str, Any]:
        """Median, least and greatest value, and the medians of the extras."""
        samples = self._samples[key][engine]
        values = [sample.value for sample in samples]
        out: dict[str, Any] = {
            "median": _tidy(statistics.median(values)),
            "min": _tidy(min(values)),
            "max": _tidy(max(values)),
            "unit": self.measures[key].unit,
            "reps": len(values),
            "n": samples[-1].count,
        }
        for extra in EXTRAS:
            if seen := [sample.extras[extra] for sample in samples if extra in sample.extras]:
                out[extra] = _tidy(statistics.median(seen))
        return out

    def ratios(self, key: str) -> dict[str, float]:
        """How many times better this engine is than each other one, by medians: above 1 it leads."""
        if OWN not in self._samples[key]:
            return {}
        medians = {engine: self._median(key, engine) for engine in self._samples[key]}
        own = medians.pop(OWN)
        if self.measures[key].lower_is_better:
            return {engine: _tidy(other / own) for engine, other in medians.items() if own}
        return {engine: _tidy(own / other) for engine, other in medians.items() if other}

    def lines(self) -> list[Line]:
        """All of it by the measures' keys."""
        return [
            Line(
                self.measures[key],
                {engine: self.summary(key, engine) for engine in self._samples[key]},
                self.ratios(key),
            )
            for key in sorted(self.measures)
        ]

    def as_json(self) -> dict[str, Any]:
        """One object per measure: a summary per engine, and ``ratio``."""
        return {line.measure.key: {**line.engines, "ratio": line.ratios} for line in self.lines()}

    def _line(self, key: str) -> Line:
        summaries = {engine: self.summary(key, engine) for engine in self._samples[key]}
        return Line(self.measures[key], summaries, self.ratios(key))

    def _median(self, key: str, engine: str) -> float:
        return statistics.median(sample.value for sample in self._samples[key][engine])


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of the values lies (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, max(0, round(share * len(ranked)) - 1))]


def _tidy(value: float) -> float:
    """Three digits behind the point for small values, none for large ones."""
    return round(value) if value >= 1000 else round(value, 1 if value >= 100 else 3)
