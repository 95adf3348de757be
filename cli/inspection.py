"""What a run will take, how far it is, and what a source says about a text: commands that change nothing."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fusionx.cli.options import config_argument, echo_line, examples, opened_pipeline
from fusionx.contract.errors import EXIT_INCOMPLETE

if TYPE_CHECKING:
    from fusionx.align.vocabulary.vocab_map import Mode

_WATCH_SECONDS = 10


@click.command(
    epilog=examples(
        'explain run.yaml --source coder "def add(left, right):"',
        'explain run.yaml --source coder --map mined "some text" --json',
    )
)
@config_argument
@click.argument("text", required=False)
@click.option("--source", required=True, metavar="ID", help="Whose knowledge is brought to the target.")
@click.option("--map", "mode", type=click.Choice(["mined", "exact"]), help="Show this vocabulary map instead.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def explain(
    config: str, overrides: tuple[str, ...], text: str | None, source: str, mode: Mode | None, as_json: bool
) -> None:
    """What a source says of the target's next tokens in TEXT, and where the rest of its probability goes.

    Runs both models over TEXT. With --map: where the source's tokens go in the target's vocabulary and why, those of
    TEXT, or counts and distances of all.
    """
    if text is None and mode is None:
        raise click.UsageError("TEXT is missing: the text that both models read. Only --map does without.")
    with opened_pipeline(config, overrides, read_only=True) as pipeline:
        from fusionx.align.walk.explained_lines import walk_lines
        from fusionx.pipelines import explanation

        if as_json and mode is not None:
            click.echo(json.dumps(explanation.map_to_json(pipeline, source, mode, text), ensure_ascii=False))
        elif as_json:
            click.echo(json.dumps(explanation.walk_to_json(pipeline, source, text or ""), ensure_ascii=False))
        elif mode is not None:
            for line in explanation.map_of_text(pipeline, source, mode, text):
                click.echo(line)
        else:
            positions = explanation.walk_of_text(pipeline, source, text or "")
            for pieces in walk_lines(positions, source, pipeline.config.target.id):
                echo_line(pieces)


@click.command(epilog=examples("status run.yaml", "status run.yaml --watch", "status run.yaml --verify --json"))
@config_argument
@click.option("--verify", is_flag=True, help="Read every byte of every part, too, and check it against its hash.")
@click.option("--watch", is_flag=True, help=f"Look again every {_WATCH_SECONDS} seconds until all is complete.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with a list of stages instead of lines.")
def status(config: str, overrides: tuple[str, ...], verify: bool, watch: bool, as_json: bool) -> None:
    """What is done, missing, damaged or stale, and why; exit code 1 unless all is complete.

    Takes seconds however much there is: it reads names, sizes and the footers of some parts. A byte that changed inside
    a part is found by --verify, and by every command before it uses the part.
    """
    complete = _show_status(config, overrides, verify, as_json, watch)
    while watch and not complete:
        time.sleep(_WATCH_SECONDS)
        complete = _show_status(config, overrides, verify, as_json, watch)
    if not complete:
        sys.exit(EXIT_INCOMPLETE)


def _show_status(config: str, overrides: tuple[str, ...], verify: bool, as_json: bool, again: bool) -> bool:
    from fusionx.pipelines.status import status as status_of

    with opened_pipeline(config, overrides, read_only=True) as pipeline:
        stages = list(status_of(pipeline, verify))
    complete = all(stage.complete for stage in stages)
    if as_json:
        listed = [{**asdict(stage), "complete": stage.complete} for stage in stages]
        click.echo(json.dumps({"complete": complete, "stages": listed}, ensure_ascii=False))
        return complete
    if again and sys.stdout.isatty():
        click.clear()
    elif again:
        click.echo(f"-- {time.strftime('%H:%M:%S')}")
    for before, stage in zip([None, *stages], stages, strict=False):
        if before is not None and before.block != stage.block:
            click.echo()
        click.echo(stage.line())
    return complete


@click.command(
    epilog=examples("plan run.yaml", "plan run.yaml --documents 50 --json", "plan run.yaml --card H100 --cards 8")
)
@config_argument
@click.option("--seconds", default=30.0, show_default=True, help="Time for measuring, beside the loading of models.")
@click.option("--documents", default=200, show_default=True, help="Documents of the sample, at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.option("--card", help="A GPU, like H100: what forward passes and trainings take on it, measured or assumed.")
@click.option("--cards", default=1, show_default=True, help="How many of them train together.")
def plan(
    config: str,
    overrides: tuple[str, ...],
    seconds: float,
    documents: int,
    as_json: bool,
    card: str | None,
    cards: int,
) -> None:
    """Measure a small sample and say what the whole run will take: tokens, hours, bytes, memory.

    Writes nothing. Exit code 1 if something does not fit this machine.
    """
    from fusionx.contract.config import load_config
    from fusionx.pipelines.config import FusionConfig
    from fusionx.pipelines.planning.measure import make_plan

    run = load_config(FusionConfig, config, overrides)
    made = make_plan(run, documents, seconds)
    click.echo(made.to_json() if as_json else made.table())
    if card is not None and not as_json:
        from fusionx.pipelines.planning.on_card import lines_on_card

        click.echo("\n".join(["", *lines_on_card(run, made, card, cards)]))
    if not made.fits:
        sys.exit(EXIT_INCOMPLETE)
