"""The guide names what the integrations have."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from gen_durable.contrib.django.conf import read

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "frameworks.md").read_text("utf-8")
CODE = "\n".join(re.findall(r"^ *```.*?^ *```|`[^`\n]+`", GUIDE, re.MULTILINE | re.DOTALL))
MODULES = ["starlette", "fastapi", "django", "django.testing", "django.models"]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_documented(module: str) -> None:
    names = importlib.import_module(f"gen_durable.contrib.{module}").__all__
    assert [name for name in names if not re.search(rf"(?<!\w){name}(?!\w)", CODE)] == []


def test_every_key_and_every_check_is_documented() -> None:
    keys = ["DATABASE", "MACHINES", "MIGRATE", "SCHEDULES"]
    checks = ["E001", "E002", "W001", "W002", "W003"]
    assert [name for name in [*keys, *checks] if not re.search(rf"(?<!\w){name}(?!\w)", CODE)] == []
    assert read().database == "default"
