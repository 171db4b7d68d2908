"""The engine's settings: checked when it is built, before anything is connected."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from gen_durable._checks import MAX_SECONDS, check_name
from gen_durable.errors import ConfigurationError
from gen_durable.limits import Rate, check_limit_name, name_of_line, rate_line, unknown_rate
from gen_durable.machine import MachineSpec, spec_of
from gen_durable.schedule import Schedule

__all__ = ["LONGEST_POLL", "Settings", "check_rates", "check_sessionmaker", "database_url_from_environment"]

LARGEST_STATE = 268_435_455  # bytes of one jsonb value
LONGEST_POLL = 60.0  # an insert wakes timers for what is due sooner than any worker would look by itself
ENVIRONMENT = ("GEN_DURABLE_DATABASE_URL", "DATABASE_URL")


def database_url_from_environment() -> str | None:
    """The database URL that the environment gives: the first that is set of the two variables."""
    return next((os.environ[name] for name in ENVIRONMENT if os.environ.get(name)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All settings of one engine; :class:`gen_durable.Engine` documents them."""

    url: str | None = field(default=None, repr=False)  # they may hold a password
    listen_url: str | None = field(default=None, repr=False)
    embedded: bool | None = None
    machines: tuple[MachineSpec, ...] = ()
    queues: Mapping[str, int] = field(default_factory=lambda: {"default": 50})
    queue_limits: Mapping[str, int] = field(default_factory=dict)
    concurrency_limits: Mapping[str, int] = field(default_factory=dict)
    rate_limits: Mapping[str, Rate] = field(default_factory=dict)
    schedules: tuple[Schedule, ...] = ()
    schema: str = "gen_durable"
    name: str = "default"
    run_ahead: bool = True
    history: Literal["off", "steps", "states"] = "steps"
    retention: float = 86_400.0
    max_crashes: int = 5
    max_state_bytes: int = 1_048_576
    drain_timeout: float = 30.0
    lease: float = 15.0
    heartbeat: float = 5.0
    poll_interval: float = 5.0
    statement_timeout: float = 10.0
    prefetch: int = 500
    threads: int = 64
    pool_size: int = 4
    sessionmaker: Any = field(default=None, repr=False)
    transaction_pool_size: int = 20
    transaction_idle_timeout: float = 60.0

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "machines", _specs(self.machines))
        put(self, "queues", _counts("queues", self.queues, "queue names and how many steps each runs at once"))
        of_queues = "queue names and how many of each one's steps run at once in the cluster"
        put(self, "queue_limits", _counts("queue_limits", self.queue_limits, of_queues))
        of_keys = "names of concurrency keys and how many instances of each key run at once"
        put(self, "concurrency_limits", _counts("concurrency_limits", self.concurrency_limits, of_keys, limits=True))
        put(self, "rate_limits", _rates(self.rate_limits))
        put(self, "schedules", _schedules(self.schedules, self.machines))
        put(self, "retention", _seconds("retention", self.retention, least=0, endless=True))
        for name in ("drain_timeout",):
            put(self, name, _seconds(name, getattr(self, name), least=0))
        for name in ("lease", "heartbeat", "poll_interval", "statement_timeout", "transaction_idle_timeout"):
            put(self, name, _seconds(name, getattr(self, name), least=0.01))
        if self.poll_interval > LONGEST_POLL:
            raise ConfigurationError(f"poll_interval={self.poll_interval:g} s: use at most {LONGEST_POLL:g} seconds")
        if self.heartbeat * 2 > self.lease:
            raise ConfigurationError(
                f"heartbeat={self.heartbeat:g} s is too slow for lease={self.lease:g} s: "
                "a worker must be heard of at least twice in a lease"
            )
        for name, least in (
            ("max_crashes", 1),
            ("max_state_bytes", 1),
            ("prefetch", 0),
            ("threads", 1),
            ("pool_size", 1),
            ("transaction_pool_size", 1),
        ):
            most = LARGEST_STATE if name == "max_state_bytes" else 2**31 - 1
            _integer(name, getattr(self, name), least, most)
        if self.history not in ("off", "steps", "states"):
            raise ConfigurationError(f'history={self.history!r}: use "off", "steps" or "states"')
        check_name(self.name, f"name={self.name!r}: an engine's name", error=ConfigurationError)
        if not isinstance(self.run_ahead, bool):
            raise ConfigurationError(f"run_ahead={self.run_ahead!r}: use True or False")
        check_sessionmaker(self.sessionmaker)
        if self.embedded is not None and not isinstance(self.embedded, bool):
            raise ConfigurationError(f"embedded={self.embedded!r}: use True, False or None")

    @property
    def transactional(self) -> tuple[str, ...]:
        """The transactional steps of its machines."""
        return tuple(
            f"{spec.name}.{step.name}" for spec in self.machines for step in spec.steps.values() if step.transactional
        )

    @property
    def rate_names(self) -> tuple[str, ...]:
        """The names of the rate limits that steps declare by themselves (not by a function), sorted."""
        return tuple(sorted({name for _, name, _ in _declared_rates(self.machines)}))


def check_rates(machines: Iterable[MachineSpec], known: Mapping[str, float]) -> None:
    """Refuses machines whose steps could never start: what functions of theirs answer is checked when they do.

    Args:
        machines: what an engine knows.
        known: the burst of each rate limit that there is.

    Raises:
        ConfigurationError: a declared rate limit is unknown, or never holds the declared weight.
    """
    for step, name, weight in _declared_rates(machines):
        if (problem := unknown_rate(name, weight, known)) is not None:
            raise ConfigurationError(f"{step}: {problem}")


def _declared_rates(machines: Iterable[MachineSpec]) -> Iterator[tuple[str, str, int]]:
    """The rate limits that are the same for all instances: the step, the limit's name, and the weight where that is."""
    for spec in machines:
        for step in spec.steps.values():
            if step.rate_limit is not None and not callable(step.rate_limit):
                line = rate_line(step.rate_limit, "rate_limit")
                yield f"{spec.name}.{step.name}", name_of_line(line), step.weight if isinstance(step.weight, int) else 1


def check_sessionmaker(given: Any) -> Literal["async", "sync"] | None:
    """Which kind of steps a ``sessionmaker`` is for; None: there is none. SQLAlchemy itself need not be there.

    Raises:
        ConfigurationError: it is something else.
    """
    if given is None:
        return None
    names = {kind.__name__ for kind in type(given).__mro__ if kind.__module__.partition(".")[0] == "sqlalchemy"}
    if "async_sessionmaker" in names:
        return "async"
    if "sessionmaker" in names:
        return "sync"
    raise ConfigurationError(
        f"sessionmaker={type(given).__name__}: give SQLAlchemy's async_sessionmaker(engine) for async steps, "
        "or sessionmaker(engine) for plain functions"
    )


def _specs(machines: Any) -> tuple[MachineSpec, ...]:
    if not isinstance(machines, Iterable) or isinstance(machines, str | Mapping):
        raise ConfigurationError(f"machines={machines!r}: give a list of machine and job classes and @job functions")
    specs: dict[tuple[str, int], MachineSpec] = {}
    for given in machines:
        spec = given if isinstance(given, MachineSpec) else spec_of(given)  # a spec, when settings are copied
        other = specs.setdefault((spec.name, spec.version), spec)
        if other is not spec:
            raise ConfigurationError(
                f"two machines have the name {spec.name!r} and version {spec.version}: "
                "give one another name= or version="
            )
    return tuple(specs.values())


def _counts(setting: str, counts: Mapping[str, int], meaning: str, *, limits: bool = False) -> dict[str, int]:
    if not isinstance(counts, Mapping):
        raise ConfigurationError(f"{setting}={counts!r}: give a dict of {meaning}")
    for name, count in counts.items():
        what = f"{setting} has the name {name!r}: it"
        if limits:
            check_limit_name(name, what, ConfigurationError)
        else:
            check_name(name, what, error=ConfigurationError)
        _integer(f"{setting}[{name!r}]", count, 1)
    return dict(counts)


def _rates(rates: Mapping[str, Rate]) -> dict[str, Rate]:
    if not isinstance(rates, Mapping):
        raise ConfigurationError(f"rate_limits={rates!r}: give a dict of names and Rate(limit, per=seconds)")
    for name, rate in rates.items():
        check_limit_name(name, f"rate_limits has the name {name!r}: it", ConfigurationError)
        if not isinstance(rate, Rate):
            raise ConfigurationError(f"rate_limits[{name!r}]={rate!r}: use Rate(limit, per=seconds)")
    return dict(rates)


def _schedules(schedules: Any, machines: tuple[MachineSpec, ...]) -> tuple[Schedule, ...]:
    if not isinstance(schedules, Iterable) or isinstance(schedules, str | Mapping):
        raise ConfigurationError(f"schedules={schedules!r}: give a list of Schedule(...)")
    known: dict[str, Schedule] = {}
    for given in schedules:
        if not isinstance(given, Schedule):
            raise ConfigurationError(f"schedules has {given!r}: give Schedule(name, cron, instance, ...)")
        if known.setdefault(given.name, given) is not given:
            raise ConfigurationError(f"two schedules have the name {given.name!r}: give one another name")
        spec = spec_of(given.instance)
        if spec not in machines:
            raise ConfigurationError(
                f"the schedule {given.name!r} starts {spec.name} version {spec.version}, which is not among the "
                "engine's machines: add it to machines="
            )
    return tuple(known.values())


def _integer(name: str, value: Any, least: int, most: int = 2**31 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigurationError(f"{name}={value!r}: use a whole number of at least {least} and at most {most}")


def _seconds(name: str, value: Any, *, least: float, endless: bool = False) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    fine = isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= least
    if not fine or not (endless or seconds <= MAX_SECONDS):
        most = "" if endless else f" and at most {MAX_SECONDS:.0f} (100 years)"
        raise ConfigurationError(
            f"{name}={value!r}: use a number of seconds (or a timedelta) of at least {least:g}{most}"
        )
    return float(seconds)
