"""What a model is, before anything is run with it."""

from __future__ import annotations

import click


@click.group()
def inspect() -> None:
    """Look into what a config names, without running anything."""


@inspect.command()
@click.argument("path")
@click.option("--revision", help="Of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def model(path: str, revision: str | None, as_json: bool) -> None:
    """Sizes, tokens, licence, memory, and whether it can be source or target.

    PATH: a model folder, a hub id, a GGUF file, or hf://owner/repo/file.gguf. Loads no weights.
    """
    from fusionx.pipelines.model_description import describe_model

    found = describe_model(path, revision)
    click.echo(found.to_json() if as_json else found.table())
