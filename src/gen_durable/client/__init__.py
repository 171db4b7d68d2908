"""Every call on instances: insert, schedule, read, wait, steer; and on limits."""

from __future__ import annotations

from gen_durable.client.handle import Handle, Inserted
from gen_durable.client.inserting import BulkItem
from gen_durable.client.limiting import LimitingCalls
from gen_durable.client.registering import RegisteringCalls
from gen_durable.client.scheduling import SchedulingCalls
from gen_durable.client.steering import SteeringCalls

__all__ = ["BulkItem", "Client", "Handle", "Inserted"]


class Client(SchedulingCalls, SteeringCalls, LimitingCalls, RegisteringCalls):
    """The calls. An :class:`gen_durable.Engine` is one; it is open between ``async with``'s begin and end."""
