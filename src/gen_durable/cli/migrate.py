"""``gen-durable migrate``."""

from __future__ import annotations

import rich_click as click

from gen_durable.cli._options import database_options, debug_option, json_option, run, start_development
from gen_durable.cli._output import write_json

__all__ = ["migrate"]


@click.command
@database_options
@click.option(
    "--sql",
    is_flag=True,
    help="Print the SQL script of a first installation, for an empty schema, instead; needs no database.",
)
@json_option
@debug_option
def migrate(database_url: str | None, schema: str, sql: bool, as_json: bool) -> None:
    """Create or update the schema. Safe to run twice, and from several processes at once."""
    if sql:
        if as_json:
            raise click.UsageError("--sql and --json: give one of them")
        from gen_durable._store.migrating import migration_sql

        click.echo(migration_sql(schema), nl=False)
        return
    from gen_durable import Engine

    engine = Engine(database_url, schema=schema, name="gen-durable", queues={})
    start_development(engine, note=True)
    ran = run(engine.migrate())
    if as_json:
        write_json({"schema": schema, "migrations": ran})
    elif ran:
        for name in ran:
            click.echo(f"{schema}: {name}")
    else:
        click.echo(f"{schema}: nothing to do")
