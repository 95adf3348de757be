"""What makes the command line at home in a shell: completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from fusionx.cli.options import examples

_SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog=examples(
        "completion bash > ~/.local/share/bash-completion/completions/fusionx",
        "completion zsh > ~/.zfunc/_fusionx",
        "completion fish > ~/.config/fish/completions/fusionx.fish",
    )
)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes fusionx's commands and options in SHELL.

    For one session: eval "$(fusionx completion bash)". For good: one of the lines below; zsh needs the folder in its
    fpath before compinit.
    """
    found = get_completion_class(shell)
    assert found is not None, shell
    click.echo(found(ctx.find_root().command, {}, "fusionx", "_FUSIONX_COMPLETE").source())
