"""A backend for Django's tasks (``django.tasks`` of Django 6, or the package ``django-tasks``).

::

    TASKS = {"default": {"BACKEND": "gen_durable.contrib.django.tasks.DurableBackend"}}

``enqueue`` writes within the current transaction of the settings' database: a task is there if its ``atomic`` block
commits. ``manage.py durable worker`` runs them. A task runs at least once: again, when a worker dies in it. An
exception fails it, unless ``"OPTIONS": {"max_attempts": 5}`` says that it is tried again after a backoff.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeVar

from django.core import checks
from django.db import connections
from django.utils import timezone
from django.utils.module_loading import import_string

from gen_durable.context import Context
from gen_durable.contrib.django import client, fresh_connections
from gen_durable.errors import NoSuchInstance
from gen_durable.job import Job
from gen_durable.outcome import Outcome, Retry
from gen_durable.retry import Backoff
from gen_durable.snapshot import Snapshot, Transition

if TYPE_CHECKING:
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
    from django_tasks.exceptions import TaskResultDoesNotExist
    from django_tasks.signals import task_enqueued, task_finished, task_started
    from django_tasks.utils import normalize_json
else:
    try:
        from django.tasks.backends.base import BaseTaskBackend
        from django.tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
        from django.tasks.exceptions import TaskResultDoesNotExist
        from django.tasks.signals import task_enqueued, task_finished, task_started
        from django.utils.json import normalize_json
    except ImportError:
        from django_tasks.backends.base import BaseTaskBackend
        from django_tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
        from django_tasks.exceptions import TaskResultDoesNotExist
        from django_tasks.signals import task_enqueued, task_finished, task_started
        from django_tasks.utils import normalize_json

__all__ = ["AsyncTask", "BlockingTask", "DurableBackend"]

T = TypeVar("T")

BACKOFF = Backoff()
STATUSES = {
    "executing": TaskResultStatus.RUNNING,
    "done": TaskResultStatus.SUCCESSFUL,
    "failed": TaskResultStatus.FAILED,
    "cancelled": TaskResultStatus.FAILED,
}


class _TaskJob(Job, abstract=True, max_attempts=1):
    """A call of a task: what every run needs."""

    path: str
    backend: str
    args: list[Any] = []  # noqa: RUF012 - a machine copies its defaults
    kwargs: dict[str, Any] = {}  # noqa: RUF012
    priority: int = 0
    max_attempts: int = 1

    def on_error(self, error: Any, ctx: Context) -> Outcome:
        """Again after a backoff, while there are attempts left; the policy, which has one, then ends it."""
        if ctx.attempt + 1 >= self.max_attempts:
            raise error
        return Retry(delay=BACKOFF.delay_after(ctx.attempt, error) or BACKOFF.maximum)

    def begin(self, ctx: Context) -> tuple[Any, TaskResult[Any], list[Any]]:
        """The task, its result as it is while it runs, and its positional arguments."""
        task = _task(self.path, self.backend, self.priority, ctx.queue)
        result: TaskResult[Any] = TaskResult(
            task=task,
            id=str(ctx.id),
            status=TaskResultStatus.RUNNING,
            enqueued_at=ctx.inserted_at,
            started_at=timezone.now(),
            last_attempted_at=timezone.now(),
            finished_at=None,
            args=self.args,
            kwargs=self.kwargs,
            backend=self.backend,
            errors=[],
            worker_ids=[str(ctx.worker)] * (ctx.attempt + 1),
        )
        task_started.send(sender=type(task.get_backend()), task_result=result)
        context = [TaskContext(task_result=result)] if task.takes_context else []
        return task, result, [*context, *self.args]


def _end(result: TaskResult[Any], value: Any, *, failed: bool) -> Any:
    """Tells Django's signal how a run ended; answers with what is stored."""
    stored = None if failed else normalize_json(value)
    put = object.__setattr__
    put(result, "status", TaskResultStatus.FAILED if failed else TaskResultStatus.SUCCESSFUL)
    put(result, "finished_at", timezone.now())
    put(result, "_return_value", stored)
    task_finished.send(sender=type(result.task.get_backend()), task_result=result)
    return stored


class BlockingTask(_TaskJob, name="django.task", max_attempts=1):
    """A task that is a plain function: it runs in a thread."""

    def run(self, ctx: Context) -> Any:
        """Calls it; connections are handled as for a request."""
        with fresh_connections():
            task, result, args = self.begin(ctx)
            try:
                value = task.func(*args, **self.kwargs)
            except BaseException:
                _end(result, None, failed=True)
                raise
            return _end(result, value, failed=False)


class AsyncTask(_TaskJob, name="django.task.async", max_attempts=1):
    """A task that is a coroutine function: it runs on the worker's event loop."""

    async def run(self, ctx: Context) -> Any:
        """Awaits it."""
        task, result, args = self.begin(ctx)
        try:
            value = await task.func(*args, **self.kwargs)
        except BaseException:
            _end(result, None, failed=True)
            raise
        return _end(result, value, failed=False)


NAMES = {job.__durable__.name for job in (BlockingTask, AsyncTask)}


class DurableBackend(BaseTaskBackend):
    """Tasks as jobs: ``enqueue`` within the current transaction, results by the instance's id."""

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._max_attempts = self.options.get("max_attempts", 1)

    def enqueue(self, task: Task[Any, T], args: Any, kwargs: Any) -> TaskResult[T]:
        """Inserts a job; it is there when the current transaction of the settings' database commits.

        Raises:
            InvalidTaskError: Django's: the task does not fit this backend.
            InvalidArgument: the arguments can't be stored, or no worker has the queue.
            DatabaseUnreachable: no connection.
        """
        self.validate_task(task)
        args, kwargs = normalize_json(list(args)), normalize_json(dict(kwargs))
        job = AsyncTask if iscoroutinefunction(task.func) else BlockingTask
        priority = int(task.priority)
        handle = client().insert(
            job(
                path=task.module_path,
                backend=self.alias,
                args=args,
                kwargs=kwargs,
                priority=priority,
                max_attempts=self._max_attempts,
            ),
            queue=task.queue_name,
            priority=-priority,  # Django's higher is more urgent, the engine's lower
            at=_aware(task.run_after),
            conn=connections[_database()],
        )
        result: TaskResult[T] = TaskResult(
            task=task,
            id=str(handle.id),
            status=TaskResultStatus.READY,
            enqueued_at=timezone.now(),
            started_at=None,
            last_attempted_at=None,
            finished_at=None,
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> TaskResult[Any]:
        """What is known of a task; of one whose transaction has not committed, nothing yet.

        Raises:
            TaskResultDoesNotExist: Django's: there is none, or its retention has passed.
        """
        try:
            found = client().get(int(result_id))
            history = client().history(found.id)
        except (ValueError, NoSuchInstance):
            raise TaskResultDoesNotExist(result_id) from None
        if found.machine not in NAMES:
            raise TaskResultDoesNotExist(result_id)
        return _result_of(found, history)

    def check(self, **_: Any) -> list[checks.CheckMessage]:
        """gen_durable.E002: ``max_attempts`` is wrong."""
        attempts = self._max_attempts
        if isinstance(attempts, int) and not isinstance(attempts, bool) and attempts >= 1:
            return []
        message = f'TASKS[{self.alias!r}]: OPTIONS["max_attempts"]={attempts!r}: use a whole number of at least 1'
        return [checks.Error(message, id="gen_durable.E002")]


def _result_of(found: Snapshot, history: list[Transition]) -> TaskResult[Any]:
    runs = [(each.at - timedelta(seconds=each.took or 0), str(each.worker)) for each in history if each.worker]
    if found.status == "executing":
        runs.append((found.updated_at, str(found.worker)))
    errors = [_error(each.error) for each in history if each.error]
    if found.terminal and found.error and not (history and history[-1].error):
        errors.append(_error(found.error))
    state = found.state
    result: TaskResult[Any] = TaskResult(
        task=_task(state["path"], state["backend"], state["priority"], found.queue),
        id=str(found.id),
        status=STATUSES.get(found.status, TaskResultStatus.READY),
        enqueued_at=found.inserted_at,
        started_at=runs[0][0] if runs else None,
        last_attempted_at=runs[-1][0] if runs else None,
        finished_at=found.finished_at,
        args=state["args"],
        kwargs=state["kwargs"],
        backend=state["backend"],
        errors=errors,
        worker_ids=[worker for _, worker in runs],
    )
    object.__setattr__(result, "_return_value", found.result)
    return result


def _error(error: dict[str, Any]) -> TaskError:
    """An error as Django shows it: its class must be one that can be imported."""
    name = str(error.get("type"))
    if "." not in name:
        ours = {"Cancelled": "InstanceCancelled", "CrashLoop": "InstanceFailed"}
        name = f"gen_durable.errors.{ours[name]}" if name in ours else f"builtins.{name}"
    return TaskError(exception_class_path=name, traceback=error.get("traceback") or str(error.get("message")))


def _task(path: str, backend: str, priority: int, queue: str) -> Task[Any, Any]:
    """The task that a path names, as it was enqueued."""
    found: Any = import_string(path)
    task: Task[Any, Any] = found.using(priority=priority, queue_name=queue, backend=backend)
    return task


def _aware(moment: datetime | None) -> datetime | None:
    if moment is not None and timezone.is_naive(moment):  # without USE_TZ
        return timezone.make_aware(moment, timezone.get_default_timezone()).astimezone(UTC)
    return moment


def _database() -> str:
    from gen_durable.contrib.django import conf

    return conf.read().database
