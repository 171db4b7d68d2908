"""``gen-durable completion``."""

from __future__ import annotations

import rich_click as click

from gen_durable.cli._options import debug_option

__all__ = ["completion"]


@click.command
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), help="The shell.")
@debug_option
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in a shell.

    bash: add `eval "$(gen-durable completion bash)"` to ~/.bashrc. zsh: the same with zsh, in ~/.zshrc. fish:
    `gen-durable completion fish > ~/.config/fish/completions/gen-durable.fish`.
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(ctx.find_root().command, {}, "gen-durable", "_GEN_DURABLE_COMPLETE").source())
