"""Postgres-backed durable execution: state machines and jobs that survive crashes.

An instance is a row in Postgres, a machine is a class, each step's outcome is committed before the next step starts.
"""

from gen_durable.client import BulkItem, Handle, Inserted, SyncClient, SyncHandle, SyncInserted
from gen_durable.context import ChildResult, Context, Signal
from gen_durable.engine import Engine
from gen_durable.job import Job, job
from gen_durable.limits import LimitKey, Rate
from gen_durable.machine import Machine, step
from gen_durable.outcome import Await, Cancel, Done, Next, Outcome, Retry, RetryAfter, Sleep, Spawn, Stop, child
from gen_durable.retry import Backoff
from gen_durable.schedule import Schedule
from gen_durable.snapshot import (
    LimitInfo,
    LimitRef,
    Page,
    QueueCount,
    QueueInfo,
    ScheduleInfo,
    Snapshot,
    Transition,
    Why,
    WorkerInfo,
)

__all__ = [
    "Await",
    "Backoff",
    "BulkItem",
    "Cancel",
    "ChildResult",
    "Context",
    "Done",
    "Engine",
    "Handle",
    "Inserted",
    "Job",
    "LimitInfo",
    "LimitKey",
    "LimitRef",
    "Machine",
    "Next",
    "Outcome",
    "Page",
    "QueueCount",
    "QueueInfo",
    "Rate",
    "Retry",
    "RetryAfter",
    "Schedule",
    "ScheduleInfo",
    "Signal",
    "Sleep",
    "Snapshot",
    "Spawn",
    "Stop",
    "SyncClient",
    "SyncHandle",
    "SyncInserted",
    "Transition",
    "Why",
    "WorkerInfo",
    "child",
    "job",
    "step",
]

__version__ = "0.1.0"
