"""Django's tasks on gen_durable: enqueue, run, look at the result."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import django_jobs as jobs
import pytest
from django.conf import settings
from django.core.checks import Error
from django.db import connections, transaction
from django.test import override_settings
from django_s_tasks import (
    InvalidTaskError,
    TaskResultDoesNotExist,
    TaskResultStatus,
    default_task_backend,
    task_enqueued,
    task_finished,
    task_started,
)
from examples.django_shop.shop.durable import Checkout

from gen_durable.contrib.django import client
from gen_durable.errors import InstanceCancelled, InvalidArgument

pytestmark = pytest.mark.usefixtures("project")

Work = Callable[..., None]


@contextlib.contextmanager
def backend(**given: Any) -> Iterator[None]:
    """``settings.TASKS`` with a backend of ours that has these settings."""
    path = {"BACKEND": "gen_durable.contrib.django.tasks.DurableBackend"}
    with override_settings(TASKS={"default": {**path, **given}}):
        yield


@pytest.mark.parametrize("task", [jobs.add, jobs.add_async], ids=["plain", "async"])
def test_a_task_runs_and_its_result_is_there(task: Any, work: Work) -> None:
    """From ``READY`` to ``SUCCESSFUL``: plain functions in a thread, coroutine functions on the loop."""
    result = task.enqueue(2, b=3)
    assert (result.status, result.args, result.kwargs, result.attempts) == (TaskResultStatus.READY, [2], {"b": 3}, 0)
    assert not result.is_finished
    work(int(result.id))
    result.refresh()
    assert result.status == TaskResultStatus.SUCCESSFUL
    assert result.return_value == ({"sum": 5} if task is jobs.add else 5)
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert result.last_attempted_at == result.started_at
    assert (result.attempts, result.errors) == (1, [])
    assert jobs.threads.pop().startswith("gen_durable step") is (task is jobs.add)
    again = task.get_result(result.id)
    assert (again.task, again.args, again.return_value) == (task, [2], result.return_value)


@pytest.mark.parametrize(
    ("task", "kind"), [(jobs.broken, LookupError), (jobs.broken_async, ZeroDivisionError)], ids=["plain", "async"]
)
def test_an_exception_fails_a_task(task: Any, kind: type[Exception], work: Work) -> None:
    """``FAILED`` after one run, with the exception's class and traceback."""
    result = task.enqueue("no such page")
    work(int(result.id))
    result.refresh()
    assert (result.status, result.attempts) == (TaskResultStatus.FAILED, 1)
    (error,) = result.errors
    assert error.exception_class is kind
    assert "no such page" in error.traceback
    with pytest.raises(ValueError, match="Task failed"):
        result.return_value  # noqa: B018


def test_a_result_that_is_no_json_fails_the_task(work: Work) -> None:
    """As Django's own backends do."""
    result = jobs.unstorable.enqueue()
    work(int(result.id))
    result.refresh()
    assert result.errors[0].exception_class is TypeError


def test_more_attempts_when_the_backend_says_so(work: Work) -> None:
    """``max_attempts``: after an exception it is ``READY`` again, until a run succeeds or none is left."""
    names = [uuid.uuid4().hex for _ in range(2)]
    with backend(OPTIONS={"max_attempts": 2}):
        good, bad = jobs.flaky.enqueue(names[0], 1), jobs.flaky.enqueue(names[1], 5)
        work(int(good.id), int(bad.id))
        for result in (good, bad):
            result.refresh()
        assert (good.return_value, good.attempts) == (2, 2)
        assert [error.exception_class for error in good.errors] == [OSError]
        assert (bad.status, bad.attempts, len(bad.errors)) == (TaskResultStatus.FAILED, 2, 2)
        assert bad.errors[1].traceback.endswith("OSError: failure 2\n")
        assert good.started_at < good.last_attempted_at


def test_enqueue_rides_in_the_transaction(work: Work) -> None:
    """R20: a task whose block is rolled back never was; within the block nobody else sees it."""
    with transaction.atomic():
        kept = jobs.add.enqueue(1)
        with pytest.raises(TaskResultDoesNotExist):
            kept.refresh()
    kept.refresh()
    assert kept.status == TaskResultStatus.READY
    with contextlib.suppress(ArithmeticError), transaction.atomic():
        lost = jobs.add.enqueue(2)
        raise ArithmeticError
    with pytest.raises(TaskResultDoesNotExist):
        jobs.add.get_result(lost.id)
    work(int(kept.id))


def test_priority_and_run_after_and_queue(work: Work) -> None:
    """R17: Django's higher priority is more urgent; ``run_after`` is when it is due; the queue is the engine's."""
    later = datetime.now(UTC) + timedelta(days=1)
    with backend(QUEUES=["default", "shop"]):
        waiting = jobs.note.using(run_after=later, queue_name="shop").enqueue("later")
        found = client().get(int(waiting.id))
        assert (found.due_at, found.queue) == (later, "shop")
        assert waiting.task.run_after == later
        assert jobs.note.get_result(waiting.id).task.queue_name == "shop"
        client().cancel(int(waiting.id))
    one_at_a_time = {**settings.GEN_DURABLE, "QUEUES": {"default": 1, "shop": 1}}
    with override_settings(GEN_DURABLE=one_at_a_time):
        del jobs.order[:]
        results = [jobs.note.using(priority=priority).enqueue(str(priority)) for priority in (-5, 100, 0, 7)]
        work(*(int(result.id) for result in results))
    assert jobs.order == ["100", "7", "0", "-5"]
    assert jobs.note.get_result(results[1].id).task.priority == 100


def test_a_task_may_ask_for_its_context(work: Work) -> None:
    """``takes_context``."""
    result = jobs.told.enqueue(7)
    work(int(result.id))
    result.refresh()
    assert result.return_value == [1, result.id, [7], "RUNNING", 7]


def test_signals_are_sent(work: Work) -> None:
    """``task_enqueued`` here; ``task_started`` and ``task_finished`` where it runs."""
    seen: list[tuple[str, str]] = []

    def hear(name: str) -> Any:
        return lambda sender, task_result, **_: seen.append((name, str(task_result.status)))

    hearers = {name: hear(name) for name in ("enqueued", "started", "finished")}
    sent = {"enqueued": task_enqueued, "started": task_started, "finished": task_finished}
    for name, signal in sent.items():
        signal.connect(hearers[name])
    try:
        for result in (jobs.add.enqueue(1), jobs.broken.enqueue("x")):
            work(int(result.id))
    finally:
        for name, signal in sent.items():
            signal.disconnect(hearers[name])
    assert seen == [
        ("enqueued", "READY"),
        ("enqueued", "READY"),
        ("started", "RUNNING"),
        ("finished", "SUCCESSFUL"),
        ("started", "RUNNING"),
        ("finished", "FAILED"),
    ]


def test_a_cancelled_task_has_failed() -> None:
    """Django has no word for it; the error says what it was."""
    result = jobs.note.enqueue("cancelled")
    client().cancel(int(result.id), reason="not wanted")
    result.refresh()
    assert (result.status, result.attempts) == (TaskResultStatus.FAILED, 0)
    (error,) = result.errors
    assert (error.exception_class, error.traceback) == (InstanceCancelled, "not wanted")


def test_what_does_not_fit_is_refused() -> None:
    """Section 14: nothing is written for what Django, or the engine, can't take."""
    with pytest.raises(InvalidTaskError):
        jobs.add.using(queue_name="elsewhere").enqueue(1)
    with backend(QUEUES=["elsewhere"]), pytest.raises(InvalidArgument, match="there is no queue 'elsewhere'"):
        jobs.add.using(queue_name="elsewhere").enqueue(1)
    with pytest.raises(TypeError):
        jobs.add.enqueue(object())
    with backend(OPTIONS={"max_attempts": 0}):
        (found,) = default_task_backend.check()
        assert isinstance(found, Error)
        assert found.id == "gen_durable.E002"


def test_only_tasks_are_results() -> None:
    """An instance of a machine is none, nor is what never was."""
    other = client().insert(Checkout(order=1))
    for id_ in (str(other.id), "999999999", "no number"):
        with pytest.raises(TaskResultDoesNotExist):
            default_task_backend.get_result(id_)


async def test_from_async_code() -> None:
    """``aenqueue`` and ``aget_result``."""
    result = await jobs.add_async.aenqueue(1)
    assert (await jobs.add_async.aget_result(result.id)).status == TaskResultStatus.READY
    await result.arefresh()
    await asyncio.to_thread(client().cancel, int(result.id))
    from asgiref.sync import sync_to_async

    await sync_to_async(connections.close_all)()
