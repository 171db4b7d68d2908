"""How figures are shown: the headings of what belongs to a value, and numbers of three digits."""

from __future__ import annotations

EXTRAS = (
    ("wal_bytes", "WAL B"),
    ("commits", "commits"),
    ("client_ms", "client ms"),
    ("server_ms", "server ms"),
    ("p99", "p99 ms"),
    ("trip_ms", "trip ms"),
    ("busy_pct", "busy %"),
    ("rate", "rate"),
    ("plain_wal", "plain WAL"),
    ("plain", "plain"),
    ("share", "share"),
    ("alone", "alone ms"),
    ("written", "rewritten"),
)


def shown(value: float) -> str:
    """Three digits behind the point for small values, none for large ones."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def times(ratio: float) -> str:
    """``3.0 ×``: how many times better."""
    return f"{ratio:,.0f} ×" if ratio >= 10 else f"{ratio:.1f} ×" if ratio >= 2 else f"{ratio:.2f} ×"
