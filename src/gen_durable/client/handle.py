"""Handles: what an insert answers with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gen_durable.snapshot import Snapshot, Why

if TYPE_CHECKING:
    from gen_durable.client import Client, SyncClient

__all__ = ["Handle", "Inserted", "SyncHandle", "SyncInserted"]


class Handle(msgspec.Struct, frozen=True):
    """An inserted instance.

    Attributes:
        id: its number.
        key: its business identity, or None.
        machine: the machine's name.
    """

    id: int
    key: str | None
    machine: str
    _client: Client

    async def get(self) -> Snapshot:
        """The instance as it is now; see :meth:`Client.get`."""
        return await self._client.get(self.id)

    async def result(self, timeout: float | None = None) -> Any:
        """Waits for its end; see :meth:`Client.result`."""
        return await self._client.result(self.id, timeout)

    async def signal(self, name: str, payload: Any = None, *, dedup_key: str | None = None, conn: Any = None) -> bool:
        """Puts a signal into its inbox; see :meth:`Client.signal`."""
        return await self._client.signal(self.id, name, payload, dedup_key=dedup_key, conn=conn)

    async def cancel(self, *, cascade: bool = False, reason: str = "cancelled", conn: Any = None) -> bool:
        """Ends it as ``cancelled``; see :meth:`Client.cancel`."""
        return await self._client.cancel(self.id, cascade=cascade, reason=reason, conn=conn)

    async def why(self) -> Why:
        """Why it does not run; see :meth:`Client.why`."""
        return await self._client.why(self.id)

    def __repr__(self) -> str:
        return f"Handle(id={self.id}, key={self.key!r}, machine={self.machine!r})"


class Inserted(msgspec.Struct, frozen=True):
    """What became of one item of ``insert_many``.

    Attributes:
        handle: the new instance, or the one that holds the key.
        duplicate: whether the key was taken, so that nothing was inserted.
    """

    handle: Handle
    duplicate: bool

    @property
    def id(self) -> int:
        """The handle's id."""
        return self.handle.id


class SyncHandle(msgspec.Struct, frozen=True):
    """An inserted instance, to those who can't await; see :class:`Handle`.

    Attributes:
        id: its number.
        key: its business identity, or None.
        machine: the machine's name.
    """

    id: int
    key: str | None
    machine: str
    _client: SyncClient

    def get(self) -> Snapshot:
        """The instance as it is now; see :meth:`Client.get`."""
        return self._client.get(self.id)

    def result(self, timeout: float | None = None) -> Any:
        """Waits for its end; see :meth:`Client.result`."""
        return self._client.result(self.id, timeout)

    def signal(self, name: str, payload: Any = None, *, dedup_key: str | None = None, conn: Any = None) -> bool:
        """Puts a signal into its inbox; see :meth:`Client.signal`."""
        return self._client.signal(self.id, name, payload, dedup_key=dedup_key, conn=conn)

    def cancel(self, *, cascade: bool = False, reason: str = "cancelled", conn: Any = None) -> bool:
        """Ends it as ``cancelled``; see :meth:`Client.cancel`."""
        return self._client.cancel(self.id, cascade=cascade, reason=reason, conn=conn)

    def why(self) -> Why:
        """Why it does not run; see :meth:`Client.why`."""
        return self._client.why(self.id)

    def __repr__(self) -> str:
        return f"SyncHandle(id={self.id}, key={self.key!r}, machine={self.machine!r})"


class SyncInserted(msgspec.Struct, frozen=True):
    """What became of one item of a :class:`SyncClient`'s ``insert_many``.

    Attributes:
        handle: the new instance, or the one that holds the key.
        duplicate: whether the key was taken, so that nothing was inserted.
    """

    handle: SyncHandle
    duplicate: bool

    @property
    def id(self) -> int:
        """The handle's id."""
        return self.handle.id
