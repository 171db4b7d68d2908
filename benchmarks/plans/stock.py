"""The rows among which the plans are looked at.

They are skewed as queues are: most of the mixed ones wait for a later time on an urgent priority, are parked, or are
executed by somebody else; a fifth of them are children of one parent. Beside them lie rows that wait for one of 200
keys, ended ones, and a backlog of ready ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

BATCH = 100
BIG = 31  # waits for a fifth of the mixed rows, its children
ME, OTHER, DEAD, ORPHAN, HOLDER = 7, 8, 9, 10, 11  # HOLDER's claims hold keys for which others wait

Run = Callable[..., Awaitable[list[tuple[Any, ...]]]]
Ask = Callable[[str], Awaitable[list[tuple[Any, ...]]]]


@dataclass(frozen=True, kw_only=True)
class Stock:
    """How many rows of each kind; ids of mixed ones start at 1, and of the others at multiples of ``mixed``.

    ``mixed`` is a multiple of 10,000, so that there is a row with a key in the middle.
    """

    mixed: int
    ended: int
    backlog: int = 0

    @property
    def blocked(self) -> int:
        return self.mixed // 10

    @property
    def each(self) -> int:
        """One mixed row of so many is ME's claim: 500 of them, whatever their number."""
        return self.mixed // 10_000 * 20

    def ended_id(self, number: int) -> int:
        return 2 * self.mixed + number

    def blocked_id(self, number: int) -> int:
        """The first ``BATCH`` hold their keys, the others wait."""
        return 3 * self.mixed + number

    def insertions(self) -> list[str]:
        """SQL that fills the tables; ``{schema}`` stands for the schema."""
        return [text for text in (self._mixed(), self._blocked(), self._backlog(), *self._ended()) if text]

    def _mixed(self) -> str:
        # Of 20 rows: 7 scheduled on an urgent priority, 4 await a signal and 2 children, 5 executing, 2 ready; every
        # 20th has a key, and all that are 3 modulo 5, among them the claims of ME, are BIG's.
        return f"""
        INSERT INTO {{schema}}.instances (due_at, inserted_at, updated_at, lane, worker, status, priority, step, key,
            scope, state, inbox, awaits, parent_id, parent_spawn, spawn, children_left)
        SELECT
            CASE WHEN n % 20 BETWEEN 7 AND 12 AND n > 4000 AND n % 3 > 0 THEN 'infinity'
                ELSE now() + CASE WHEN n % 20 < 13 AND n > 4000 THEN interval '1 day' ELSE interval '-1 s' END
            END,
            now(), now(), 1 + n % 2,
            CASE WHEN n % 20 BETWEEN 13 AND 17 THEN
                CASE n % {self.each} WHEN 13 THEN {ME} WHEN 14 THEN {DEAD} WHEN 15 THEN {ORPHAN} ELSE {OTHER} END
            END,
            CASE WHEN n % 20 < 7 THEN 1 WHEN n % 20 < 11 THEN 3 WHEN n % 20 < 13 THEN 4 WHEN n % 20 < 18 THEN 2
                ELSE 0 END,
            CASE WHEN n % 20 < 7 THEN -100 ELSE 0 END, 's',
            CASE WHEN n % 20 = 0 THEN 'k' || n WHEN n % 20 = 18 AND n < 100000 THEN 'loose' END,
            CASE WHEN n % 20 = 18 THEN 0 END, '{{}}',
            CASE WHEN n % 20 BETWEEN 7 AND 10 OR n % {self.each} = 13 OR n % 20 = 19 THEN 2 END,
            CASE WHEN n % 20 BETWEEN 7 AND 10 OR n % 20 = 19 THEN ARRAY['go'] END,
            CASE WHEN n % 5 = 3 THEN {BIG} END, CASE WHEN n % 5 = 3 THEN 1 END,
            CASE WHEN n % 20 BETWEEN 11 AND 12 THEN 1 END,
            CASE WHEN n % 20 BETWEEN 11 AND 12 THEN {self.mixed // 5} END
        FROM generate_series(1, {self.mixed}) n
        """

    def _blocked(self) -> str:
        return f"""
        INSERT INTO {{schema}}.instances (id, due_at, inserted_at, updated_at, lane, worker, status, step, gate, line,
            state)
        SELECT {self.blocked_id(0)} + n, now(), now(), now(), 1,
            CASE WHEN n <= {BATCH} THEN {HOLDER} END, CASE WHEN n <= {BATCH} THEN 2 ELSE 5 END, 's',
            'cg' || n % {2 * BATCH}, 'cg' || n % {2 * BATCH}, '{{}}'
        FROM generate_series(1, {self.blocked}) n
        """

    def _backlog(self) -> str:
        if not self.backlog:
            return ""
        return f"""
        INSERT INTO {{schema}}.instances (id, due_at, inserted_at, updated_at, lane, status, step, state)
        SELECT {4 * self.mixed} + n, now() - make_interval(secs => n % 3600), now(), now(), 1 + n % 2, 0, 's', '{{}}'
        FROM generate_series(1, {self.backlog}) n
        """

    def _ended(self) -> list[str]:
        reserved = f"""
        INSERT INTO {{schema}}.instances (id, due_at, inserted_at, updated_at, lane, status, step, key, scope, state)
        SELECT {self.ended_id(0)} + n, CASE WHEN n % 100 = 1 THEN now() ELSE now() + interval '1 day' END, now(), now(),
            1, 9, 's', 'f' || n, 1 << 6, '{{}}'
        FROM generate_series(1, {self.ended}) n
        """
        signals = """
        INSERT INTO {schema}.signals (instance_id, sent_at, name, payload, dedup_key)
        SELECT i.id, now(), 'other', '1', CASE WHEN i.id % 3 = 0 THEN 'd' || s END
        FROM {schema}.instances i CROSS JOIN generate_series(1, 2) s WHERE i.inbox IS NOT NULL
        """
        finished = f"""
        INSERT INTO {{schema}}.finished (id, rev, inserted_at, finished_at, expires_at, bucket, lane, attempt, crashes,
            status, priority, step, key, state, parent_id, parent_spawn)
        SELECT {self.ended_id(0)} + n, 3, now(), now(),
            CASE WHEN n % 100 = 1 THEN now() ELSE now() + interval '1 day' END,
            CASE WHEN n % 2 = 0 THEN (now() + interval '1 day')::date ELSE 'infinity' END,
            1, 0, 0, CASE WHEN n % 10 = 7 THEN 7 ELSE 6 END, 0, 's',
            CASE WHEN n % 20 = 0 THEN 'f' || n % 10000 END, '{{}}',
            CASE WHEN n % 4 = 1 THEN {self.mixed // 2} + n WHEN n % 4 = 3 THEN {BIG} END,
            CASE WHEN n % 2 = 1 THEN 1 END
        FROM generate_series(1, {self.ended}) n
        """
        transitions = f"""
        INSERT INTO {{schema}}.transitions (instance_id, seq, at, attempt, outcome, step)
        SELECT {self.ended_id(0)} + n, 1, now(), 0, 0, 's' FROM generate_series(1, {self.ended}) n
        """
        return [reserved, signals, finished, transitions]


async def lay(run: Run, ask: Ask) -> None:
    """What the rows refer to, in an empty schema: two lanes of a queue, and workers, of which one is dead.

    ``run`` runs one of the engine's statements, ``ask`` other SQL, in which ``{schema}`` stands for the schema.
    """
    lanes = ", ".join(f'{{"queue": "q", "machine": "{name}", "version": 1, "retention": 86400.0}}' for name in "ab")
    await run("queues/lanes", lanes=f"[{lanes}]")
    await run("pruning/ensure")
    for worker, seen in ((ME, -3600), (OTHER, -3600), (HOLDER, -3600), (DEAD, 3600)):
        await run(
            "workers/register",
            worker=worker,
            name=f"w{worker}",
            host="here",
            pid=1,
            queues="{}",
            lanes=[],
            lock=False,
        )
        await ask(f"UPDATE {{schema}}.workers SET seen_at = now() - interval '{seen} s' WHERE id = {worker}")
    tables = await ask(
        "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = '{schema}'::regnamespace AND relkind = 'r'"
    )
    for (table,) in tables:
        await ask(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        await ask(f"VACUUM ANALYZE {table}")
