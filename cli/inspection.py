"""What a run will take, how far it is, and where a source's tokens go: commands that change nothing."""

from __future__ import annotations

import sys

import click

from fusionx.cli.options import config_argument, opened_pipeline
from fusionx.contract.errors import EXIT_INCOMPLETE


@click.command("explain-map")
@config_argument
@click.argument("text", required=False)
@click.option("--source", required=True, metavar="ID", help="Whose tokens are mapped to the target's.")
@click.option("--map", "mode", default=None, help="mined, exact or first-token; by default the config's first map.")
def explain_map(config: str, overrides: tuple[str, ...], text: str | None, source: str, mode: str | None) -> None:
    """Where a source's tokens go in the target's vocabulary and why: those of TEXT, or counts and distances of all."""
    with opened_pipeline(config, overrides, read_only=True) as pipeline:
        for line in pipeline.explain_map(source, mode, text):
            click.echo(line)


@click.command()
@config_argument
def status(config: str, overrides: tuple[str, ...]) -> None:
    """What is done, missing, damaged or stale, and why; exit code 1 unless all is complete."""
    from fusionx.pipelines.status import status as status_of

    with opened_pipeline(config, overrides, read_only=True) as pipeline:
        stages = list(status_of(pipeline))
    for stage in stages:
        click.echo(stage.line())
    if not all(stage.complete for stage in stages):
        sys.exit(EXIT_INCOMPLETE)


@click.command()
@config_argument
@click.option("--documents", default=200, show_default=True, help="Documents of the sample that is measured.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def plan(config: str, overrides: tuple[str, ...], documents: int, as_json: bool) -> None:
    """Measure a small sample and say what the whole corpus will take: tokens, hours, bytes. Writes nothing."""
    from fusionx.contract.config import load_config
    from fusionx.pipelines.config import FusionConfig
    from fusionx.pipelines.plan import make_plan

    made = make_plan(load_config(FusionConfig, config, overrides), documents)
    click.echo(made.to_json() if as_json else made.table())
