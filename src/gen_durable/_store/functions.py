"""The SQL functions that others call: made after the migrations, from the statements of this package.

A file in ``functions/`` is a script of ``CREATE OR REPLACE FUNCTION``. ``{statement:area/name}`` stands for the text of
a statement, word for word as the client sends it; ``{session}`` for the settings that a public function runs with, as
the client's connections have them.
"""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

from gen_durable._store.operation import catalog, render

__all__ = ["checksum", "functions_sql"]

_STATEMENT = re.compile(r"\{statement:([\w/]+)\}")
_SESSION = (
    "SET search_path = pg_catalog, pg_temp "
    "SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off"
)


def functions_sql(schema: str, *, test_clock: bool = False) -> str:
    """The script that makes all functions of a schema, or makes them anew; grants on them stay.

    Raises:
        ConfigurationError: when the schema's name can't be used.
    """
    statements = catalog(schema, test_clock=True) if test_clock else catalog(schema)  # as it is cached for others
    folder = files("gen_durable._store") / "functions"
    parts = []
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda entry: entry.name):
        text = render(file.read_text("utf-8").replace("{session}", _SESSION), schema, test_clock=test_clock)
        parts.append(_STATEMENT.sub(lambda match: statements[match[1]].text.decode(), text))
    return "\n".join(parts)


def checksum(script: str) -> str:
    """What tells one text of the functions from another."""
    return hashlib.sha256(script.encode()).hexdigest()
