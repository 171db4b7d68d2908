"""Making the engine's machines known to the database, for those who insert from SQL."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gen_durable._store.registering import Limit, Registration, StateField, register
from gen_durable.client.base import Base
from gen_durable.errors import DatabaseError, DatabaseUnreachable
from gen_durable.limits import check_weight, concurrency_line, rate_line
from gen_durable.machine import MachineSpec
from gen_durable.outcome import KEEP

__all__ = ["RegisteringCalls"]

log = logging.getLogger("gen_durable")


class RegisteringCalls(Base):
    """What an engine does at its start, besides its limits."""

    async def _register_machines(self) -> None:
        """A client whose role may not write there starts all the same: then another engine must register them."""
        if not self._settings.machines:
            return
        try:
            await self._session.call(register(self._sql, [self._registration(m) for m in self._settings.machines]))
        except DatabaseUnreachable:
            raise
        except DatabaseError as error:
            log.warning("machines are not registered for inserts from SQL: %s", error)

    def _registration(self, spec: MachineSpec) -> Registration:
        codec, first = spec.codec, spec.steps[spec.initial]
        limits = {
            "own": _declared(spec.concurrency_key, concurrency_line),
            "rate": _declared(first.rate_limit, rate_line),
            "weight": _declared(first.weight, check_weight),
        }
        if first.concurrency_key is not KEEP:
            limits["gate"] = _declared(first.concurrency_key, concurrency_line)
        return Registration(
            name=spec.name,
            version=spec.version,
            queue=spec.queue,
            step=spec.initial,
            priority=spec.priority,
            retention=self._keep(spec),
            history=self._settings.history != "off",
            max_bytes=self._settings.max_state_bytes,
            fields={name: StateField(name in codec.required, codec.json_types(name)) for name in codec.fields},
            limits=limits,
        )


def _declared(declared: Any, encode: Callable[..., Any]) -> Limit:
    if callable(declared):
        return Limit(computed=True)
    return Limit(None if declared is None else encode(declared, "a limit"))
