"""Every call on instances: insert, schedule, read, wait, steer; and on limits."""

from __future__ import annotations

from gen_durable.client.calls import Client
from gen_durable.client.handle import Handle, Inserted, SyncHandle, SyncInserted
from gen_durable.client.inserting import BulkItem
from gen_durable.client.sync import SyncClient

__all__ = ["BulkItem", "Client", "Handle", "Inserted", "SyncClient", "SyncHandle", "SyncInserted"]
