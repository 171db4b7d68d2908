"""Side-by-side benchmarks: this engine, its peers and a bare loop, in one run on one Postgres.

Modules that run in a peer's own environment (``agent``, ``board``, ``adapter`` and ``engines.*``) import
nothing but the standard library and that peer.
"""
