"""Plain SQL on the test's schema, as the engine's tests have it."""

from __future__ import annotations
