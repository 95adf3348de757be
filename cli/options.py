"""What several commands take and print: the config with its overrides, the pipeline that they open with it, and lines
whose pieces have roles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fusionx.align.walk.explained_lines import Line
    from fusionx.pipelines.pipeline import Pipeline

Command = TypeVar("Command", bound=Callable[..., Any])

_STYLES: dict[str, dict[str, Any]] = {
    "plain": {},
    "label": {"fg": "green", "bold": True},
    "own": {"bold": True},
    "leaving": {"dim": True},
    "filled": {"fg": "yellow"},
    "tail": {"fg": "red"},
}
"""Of the roles in `align.walk.explained_lines`."""


def examples(*lines: str) -> str:
    """What stands at the end of a command's help, as its `epilog`: command lines to copy."""
    return "\n".join(["\b", "Examples:", *(f"  fusionx {line}" for line in lines)])


def config_argument(command: Command) -> Command:
    command = click.option(
        "--set", "overrides", multiple=True, metavar="a.b=value", help="Override a config field; repeatable."
    )(command)
    return click.argument("config", type=click.Path())(command)


def config_options(command: Command) -> Command:
    command = click.option("--overwrite", is_flag=True, help="Make stale output again instead of refusing it.")(command)
    return config_argument(command)


def source_option(command: Command) -> Command:
    return click.option("--source", default=None, metavar="ID", help="Only this source.")(command)


@contextmanager
def opened_pipeline(
    config: str, overrides: tuple[str, ...], overwrite: bool = False, read_only: bool = False
) -> Iterator[Pipeline]:
    from fusionx.pipelines.pipeline import open_pipeline

    with open_pipeline(config, overrides, overwrite=overwrite, read_only=read_only) as pipeline:
        yield pipeline


def echo_line(line: Line) -> None:
    """In colour in a terminal, plain in a pipe."""
    click.echo("".join(click.style(piece, **_STYLES[role]) for piece, role in line))
