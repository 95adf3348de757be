"""What a model is, before anything is run with it."""

from __future__ import annotations

import click

from fusionx.cli.options import examples


@click.group(epilog=examples("inspect model models/my-llm"))
def inspect() -> None:
    """Look into what a config names, without running anything."""


@inspect.command(
    epilog=examples(
        "inspect model models/my-llm",
        "inspect model Qwen/Qwen2.5-0.5B --revision main --json",
        "inspect model hf://Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf",
    )
)
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
