"""Section 14: a wrong setting is refused when the engine is built, by name, with its value and the mend."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from gen_durable import Context, Done, Engine, Machine, Rate, job, step
from gen_durable.errors import ConfigurationError


@job
async def noop() -> None: ...


class Twin(Machine, name="noop"):
    @step
    async def only(self, ctx: Context) -> Done:
        return Done()


class Base(Machine, abstract=True):
    n: int = 0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"url": 5}, "database URL is a int"),
    ({"url": "postgresql://[bad"}, "can't be parsed"),
    ({"url": "not a url"}, "can't be parsed"),
    ({"listen_url": 5}, "database URL is a int"),
    ({"embedded": "yes"}, "embedded='yes'"),
    ({"machines": noop}, "machines"),
    ({"machines": Twin}, "machines"),
    ({"machines": [5]}, "5 is neither a machine nor a job"),
    ({"machines": [Base]}, "Base is abstract"),
    ({"machines": [noop, Twin]}, "two machines have the name 'noop' and version 1"),
    ({"queues": ["default"]}, "queues="),
    ({"queues": {"": 1}}, "queues has the name ''"),
    ({"queues": {"x" * 513: 1}}, "at most 512 bytes"),
    ({"queues": {"a\0": 1}}, "NUL"),
    ({"queues": {"\ud800": 1}}, "surrogate"),
    ({"queues": {5: 1}}, "must be a string, not 5"),
    ({"queues": {"a": 0}}, r"queues\['a'\]=0"),
    ({"queues": {"a": True}}, "whole number"),
    ({"queues": {"a": 1.5}}, r"1\.5"),
    ({"queue_limits": 3}, "queue_limits=3: give a dict of queue names and how many of each one's steps"),
    ({"queue_limits": {"": 1}}, "queue_limits has the name '': it must not be empty"),
    ({"queue_limits": {"a": 0}}, r"queue_limits\['a'\]=0: use a whole number of at least 1"),
    ({"queue_limits": {"a": 2.0}}, r"queue_limits\['a'\]=2\.0"),
    ({"concurrency_limits": ["a"]}, r"concurrency_limits=\['a'\]: give a dict of names of concurrency keys"),
    ({"concurrency_limits": {"a": 0}}, r"concurrency_limits\['a'\]=0: use a whole number of at least 1"),
    ({"concurrency_limits": {"a": -1}}, r"concurrency_limits\['a'\]=-1"),
    ({"concurrency_limits": {"a": True}}, r"concurrency_limits\['a'\]=True"),
    ({"concurrency_limits": {"a": math.inf}}, r"concurrency_limits\['a'\]=inf"),
    ({"concurrency_limits": {("a", 1): 1}}, r"concurrency_limits has the name \('a', 1\): it must be a string"),
    ({"concurrency_limits": {"a\x1fb": 1}}, "concurrency_limits .* separates names from partitions"),
    ({"concurrency_limits": {"x" * 513: 1}}, "at most 512 bytes"),
    ({"rate_limits": 5}, r"rate_limits=5: give a dict of names and Rate\(limit, per=seconds\)"),
    ({"rate_limits": {"a": 5}}, r"rate_limits\['a'\]=5: use Rate\(limit, per=seconds\)"),
    ({"rate_limits": {"a": (5, 1)}}, r"rate_limits\['a'\]=\(5, 1\): use Rate"),
    ({"rate_limits": {"": Rate(1)}}, "rate_limits has the name '': it must not be empty"),
    ({"rate_limits": {"a\0": Rate(1)}}, "NUL"),
    ({"rate_limits": {"a\x1f": Rate(1)}}, "rate_limits .* separates names from partitions"),
    ({"transaction_pool_size": 0}, "transaction_pool_size=0: use a whole number of at least 1"),
    ({"transaction_idle_timeout": 0}, "transaction_idle_timeout=0: use a number of seconds"),
    ({"sessionmaker": 5}, "sessionmaker=int: give SQLAlchemy's async_sessionmaker"),
    ({"schema": ""}, "schema=''"),
    ({"schema": "Upper"}, "schema='Upper'"),
    ({"schema": "pg_mine"}, "pg_"),
    ({"schema": "x" * 51}, "1 to 50"),
    ({"schema": 'a"; DROP SCHEMA public; --'}, "lower-case"),
    ({"schema": None}, "schema=None"),
    ({"name": ""}, "name=''"),
    ({"name": 5}, "name=5"),
    ({"name": "a\0b"}, "name="),
    ({"name": "\ud800"}, "name="),
    ({"name": "x" * 513}, "name="),
    ({"run_ahead": "no"}, "run_ahead='no'"),
    ({"history": "all"}, "history='all'"),
    ({"history": True}, "history=True"),
    ({"retention": -1}, "retention=-1"),
    ({"retention": math.nan}, "retention=nan"),
    ({"retention": "1 day"}, "retention='1 day'"),
    ({"max_crashes": 0}, "max_crashes=0"),
    ({"max_crashes": 2**31}, "max_crashes="),
    ({"max_state_bytes": 0}, "max_state_bytes=0"),
    ({"max_state_bytes": 2**28}, "at most 268435455"),
    ({"drain_timeout": -0.1}, "drain_timeout="),
    ({"drain_timeout": math.inf}, r"drain_timeout=inf: .* at most 3155760000 \(100 years\)"),
    ({"lease": 0}, "lease=0"),
    ({"heartbeat": 10}, "heartbeat=10 s is too slow for lease=15 s"),
    ({"heartbeat": None}, "heartbeat=None"),
    ({"poll_interval": 0}, "poll_interval=0"),
    ({"poll_interval": True}, "poll_interval=True"),
    ({"poll_interval": timedelta(seconds=-1)}, "poll_interval="),
    ({"statement_timeout": "10s"}, "statement_timeout='10s'"),
    ({"prefetch": -1}, "prefetch=-1"),
    ({"threads": 0}, "threads=0"),
    ({"pool_size": 0}, "pool_size=0"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=[f"{next(iter(s))}={i}" for i, (s, _) in enumerate(WRONG)])
def test_a_wrong_setting_is_refused_when_the_engine_is_built(settings: dict[str, Any], message: str) -> None:
    """Section 14: ``ConfigurationError`` at the earliest moment, naming the setting."""
    with pytest.raises(ConfigurationError, match=message):
        Engine(**settings)


def test_settings_are_keyword_only_and_unknown_ones_refused() -> None:
    """Section 2: all settings but the URL are keyword-only."""
    with pytest.raises(TypeError):
        Engine(None, True)  # type: ignore[misc]
    with pytest.raises(TypeError, match="que"):
        Engine(que={"default": 1})  # type: ignore[call-arg]


def test_durations_are_seconds_or_timedeltas() -> None:
    """The settings table: seconds or a timedelta; retention may be endless."""
    engine = Engine(lease=timedelta(minutes=1), heartbeat=1, retention=math.inf, drain_timeout=0)
    assert (engine.settings.lease, engine.settings.heartbeat, engine.settings.retention) == (60.0, 1.0, math.inf)
    with pytest.raises(AttributeError):
        engine.settings.lease = 5  # type: ignore[misc]


def test_limits_are_settings() -> None:
    """Section 10: by name; what is given is copied, and None is none."""
    given = {"crm": 20}
    rates = {"crm": Rate(100, per=60, burst=20)}
    settings = Engine(concurrency_limits=given, rate_limits=rates, queue_limits={"elsewhere": 3}).settings
    given["crm"] = 0
    assert (settings.concurrency_limits, settings.rate_limits) == ({"crm": 20}, rates)
    assert settings.queue_limits == {"elsewhere": 3}
    none = Engine(concurrency_limits=None, rate_limits=None, queue_limits=None).settings
    assert (none.concurrency_limits, none.rate_limits, none.queue_limits) == ({}, {}, {})


def test_a_password_is_never_in_a_message() -> None:
    """Section 14: a URL that can't be parsed may hold a password."""
    with pytest.raises(ConfigurationError) as caught:
        Engine("postgresql://me:s3cret@host:notaport:5/db?x")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://bob:p@ss3cr3t@127.0.0.1:1/x",
        "postgresql://bob:s3cr3t/y@127.0.0.1:1/x",
        "postgresql://bob:12/s3cr3t@127.0.0.1:1/x",
        "postgresql://bob:12?s3cr3t=/y@127.0.0.1:1/x",
        "postgresql+psycopg://bob:@@s3cr3t@127.0.0.1/x",
        "postgresql://bob:s3cr3t%zz@127.0.0.1/x",
        "host=127.0.0.1 password=a s3cr3t=b",
        "postgresql://bob@127.0.0.1/x?password=a&s3cr3t=b",
    ],
)
def test_a_password_that_is_not_encoded_is_refused_and_not_shown(url: str) -> None:
    """Section 14: libpq would take a piece of such a password for the host, the port or the database, and name it."""
    with pytest.raises(ConfigurationError, match="percent-encode special characters of the password") as caught:
        Engine(url)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://bob:p%40s%2Fs@127.0.0.1:1/x%40y",
        "postgresql://bob:p?s@127.0.0.1:1/x",
        "postgresql://bob:p@one:1,two:2/x?target_session_attrs=read-write",
        "postgresql://bob@one,two/x",
        "postgresql://[::1]:5/x",
        "postgresql:///x?host=/var/run/postgresql",
        "postgresql://bob@%2Fvar%2Frun%2Fpostgresql/x?password=p@s/s",
        "host=/run/one,/run/two port=5432,5433 dbname=x password='p@s/s'",
        "host=@abstract dbname=a@b",
    ],
)
def test_what_libpq_reads_right_is_taken(url: str) -> None:
    """Section 14: several hosts, socket folders, encoded characters."""
    assert Engine(url).settings.url


def test_an_unknown_parameter_of_the_url_is_named() -> None:
    """Section 14: a message names what is wrong."""
    with pytest.raises(ConfigurationError, match='"ssl_mode"'):
        Engine("postgresql://bob:p@127.0.0.1/x?ssl_mode=require")


def test_the_settings_do_not_show_the_password() -> None:
    """Section 14: ``print(engine.settings)`` is for everybody's eyes."""
    settings = Engine("postgresql://bob:s3cr3t@h/x", listen_url="postgresql://bob:s3cr3t@h/y").settings
    assert "s3cr3t" not in repr(settings)
    assert "s3cr3t" in str(settings.url)


def test_the_same_machine_twice_is_one() -> None:
    """Section 3: two machines of one name and version are refused; the same one given twice is no conflict."""
    assert len(Engine(machines=[noop, noop]).settings.machines) == 1


def test_an_unknown_event_is_refused() -> None:
    """Section 14: ``engine.on`` names the events that there are."""
    with pytest.raises(ConfigurationError, match="no event 'steps'; the events are step, claim"):
        Engine().on("steps", print)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="hook"):
        Engine().on("step", "print")  # type: ignore[arg-type]
