"""Migrated schemas for the tests: emptied and used again, where a test has left nothing else behind."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from gen_durable._store.migrating import drop_sql, migration_sql

GONE_SECONDS = 0.2  # that a connection takes to vanish which a test has closed
# Bytes of tables and indexes; empty they have half a million. Dropping is quicker than emptying, and leaves nothing.
LARGE = 3_000_000

OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
    AND application_name <> 'gen_durable tests'
"""

TABLES = """
SELECT c.oid::int, c.relname, pg_total_relation_size(c.oid), c.reltuples >= 0
FROM pg_class c
WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relkind IN ('r', 'p')
ORDER BY c.relispartition DESC, c.oid DESC
"""

# All that a test may have changed but for rows; a row of a catalog is another one when its transaction is.
CATALOGS = """
WITH relation AS (SELECT c.* FROM pg_class c WHERE c.relnamespace = to_regnamespace(%(schema)s))
SELECT md5(string_agg(concat_ws('/', e.what, e.oid, e.state), ',' ORDER BY e.what, e.oid, e.state))
FROM (
    SELECT 'schema' AS what, n.oid, n.xmin::text AS state FROM pg_namespace n WHERE n.oid = to_regnamespace(%(schema)s)
    UNION ALL
    SELECT 'relation', r.oid, concat_ws('/', r.relname, r.relkind, r.relowner, r.relacl, r.reloptions, r.relhastriggers,
        r.relpersistence, r.relrowsecurity, r.relforcerowsecurity, r.relreplident, pg_get_expr(r.relpartbound, r.oid))
    FROM relation r
    UNION ALL
    SELECT 'column', a.attrelid, concat(a.attnum, a.xmin) FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid
    UNION ALL
    SELECT 'index', x.indexrelid, x.xmin::text FROM relation r JOIN pg_index x ON x.indexrelid = r.oid
    UNION ALL
    SELECT 'constraint', o.oid, o.xmin::text FROM relation r JOIN pg_constraint o ON o.conrelid = r.oid
    UNION ALL
    SELECT 'trigger', t.oid, t.xmin::text FROM relation r JOIN pg_trigger t ON t.tgrelid = r.oid
    UNION ALL
    SELECT 'rule', w.oid, w.xmin::text FROM relation r JOIN pg_rewrite w ON w.ev_class = r.oid
    UNION ALL
    SELECT 'default', d.oid, d.xmin::text FROM relation r JOIN pg_attrdef d ON d.adrelid = r.oid
    UNION ALL
    SELECT 'sequence', q.seqrelid, concat_ws('/', q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcycle)
    FROM relation r JOIN pg_sequence q ON q.seqrelid = r.oid
    UNION ALL
    SELECT 'policy', l.oid, l.xmin::text FROM relation r JOIN pg_policy l ON l.polrelid = r.oid
    UNION ALL
    -- Whatever else is in it, or stands on its tables from elsewhere: types, operators, views, statistics.
    SELECT 'dependent', d.objid, concat_ws('/', d.classid, d.refclassid, d.refobjid, d.deptype)
    FROM pg_depend d
    WHERE d.refobjid = to_regnamespace(%(schema)s)::oid OR d.refobjid IN (SELECT r.oid FROM relation r)
    UNION ALL
    SELECT 'function', p.oid, p.xmin::text FROM pg_proc p WHERE p.pronamespace = to_regnamespace(%(schema)s)
) e
"""


@dataclass(frozen=True, slots=True)
class Made:
    """How a schema was when it was made."""

    tables: set[int]
    catalogs: str | None
    versions: list[Any]


class SchemaPool:
    """Hands out one migrated schema at a time, with the clock of production.

    One serves the next test as well, since making it takes longer than most tests. It is dropped where anybody is still
    connected, where a table was analyzed or is large, and where anything but rows has changed.
    """

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True, application_name="gen_durable tests")
        self._connection.execute("SET client_min_messages = error")
        self._spare: str | None = None
        self._lent: dict[str, Made] = {}

    def take(self, *, new: bool = False) -> str:
        """The name of an empty, migrated schema; with ``new`` of one that nobody has used."""
        name = None
        if not new:
            name, self._spare = self._spare, None
        if name is None:
            name = f"t_{uuid.uuid4().hex[:12]}"
            self._connection.execute(migration_sql(name).encode())
            own = {oid for oid, *_ in self._tables(name)}
            self._lent[name] = Made(own, self._catalogs(name), self._versions(name))
        return name

    def has(self, name: str) -> bool:
        """Whether a schema is one of those."""
        return name in self._lent

    def give_back(self, name: str) -> None:
        """The test is over."""
        try:
            if self._alone() and self._emptied(name):
                if self._spare is not None:
                    self.drop(self._spare)
                self._spare = name
                return
        except psycopg.errors.DatabaseError:  # a test has left what can't be emptied
            pass
        self.drop(name)

    def drop(self, name: str) -> None:
        """Drops a schema, if it is there, whoever made it."""
        self._lent.pop(name, None)
        self._connection.execute(drop_sql(name).encode())

    def close(self) -> None:
        if self._spare is not None:
            self.drop(self._spare)
        self._connection.close()

    def _alone(self) -> bool:
        until = time.monotonic() + GONE_SECONDS
        while self._connection.execute(OTHERS).fetchone() != (0,):
            if time.monotonic() > until:
                return False
            time.sleep(0.005)
        return True

    def _emptied(self, name: str) -> bool:
        made = self._lent[name]
        tables = self._tables(name)
        known = [(table, size, analyzed) for oid, table, size, analyzed in tables if oid in made.tables]
        if sum(size for _, size, _ in known) > LARGE or any(analyzed for *_, analyzed in known):
            return False
        with self._connection.transaction():
            for oid, table, *_ in tables:
                if oid not in made.tables:
                    self._connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(sql.Identifier(name, table)))
            if self._catalogs(name) != made.catalogs or self._versions(name) != made.versions:
                return False
            empty = [f"DELETE FROM {name}.{table}" for table, *_ in known if table != "migrations"]
            self._connection.execute("; ".join(empty).encode())
            self._connection.execute(
                "DO $$ DECLARE s record; BEGIN FOR s IN SELECT c.relname FROM pg_class c WHERE c.relkind = 'S' AND "
                f"c.relnamespace = '{name}'::regnamespace LOOP EXECUTE "
                f"format('ALTER SEQUENCE {name}.%I RESTART', s.relname); END LOOP; END $$".encode()
            )
        return True

    def _catalogs(self, name: str) -> str | None:
        row = self._connection.execute(CATALOGS, {"schema": name}).fetchone()
        return row[0] if row else None

    def _versions(self, name: str) -> list[Any]:
        return self._connection.execute(f"SELECT m::text FROM {name}.migrations m ORDER BY 1".encode()).fetchall()

    def _tables(self, name: str) -> list[tuple[int, str, int, bool]]:
        return self._connection.execute(TABLES, {"schema": name}).fetchall()
