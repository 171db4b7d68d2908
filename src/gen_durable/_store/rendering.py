"""Statements as other drivers write them: ours have ``$1``-style parameters, as Postgres itself reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

__all__ = ["named", "numbered", "pyformat"]

_PLACE = re.compile(r"\$(\d+)")
_JSON_PLACE = re.compile(r"(\$\d+)::(jsonb?)\b")


@lru_cache(maxsize=1024)
def pyformat(text: bytes) -> str:
    """The text with ``%(p1)s``-style parameters and every other ``%`` doubled: for psycopg, psycopg2 and Django."""
    return _PLACE.sub(r"%(p\1)s", text.decode().replace("%", "%%"))


@lru_cache(maxsize=1024)
def numbered(text: bytes) -> str:
    """The text with ``$1``-style parameters, those of json given as text: for asyncpg, whose users set json codecs."""
    return _JSON_PLACE.sub(r"\1::text::\2", text.decode())


def named(parameters: Sequence[Any]) -> dict[str, Any]:
    """A request's parameters by the names that :func:`pyformat` gives them."""
    return {f"p{number}": value for number, value in enumerate(parameters, 1)}
