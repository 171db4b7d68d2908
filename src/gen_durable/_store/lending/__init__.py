"""Connections that callers lend for a call: what is common to them, and a module for each kind.

No module here imports a library that the caller does not use: see :func:`lend`.
"""

from __future__ import annotations

from gen_durable._store.lending.kinds import lend
from gen_durable._store.lending.lent import Lent

__all__ = ["Lent", "lend"]
