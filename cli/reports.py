"""Reports of evaluations that are there, studies, and benchmarks of the system itself."""

from __future__ import annotations

import json
from typing import Any

import click

from fusionx.benchmarks import BENCHMARKS, CONFIGS, CRASH, DAMAGE, DOCUMENTS, GPU, LOAD
from fusionx.cli.options import config_argument, examples, opened_pipeline
from fusionx.pipelines.study import STUDIES


@click.group(epilog=examples("report interference eval/models/target.json eval/ct eval/fusionx"))
def report() -> None:
    """Reports of evaluations that are there, of this run or of any other; needs no config."""


@report.command(
    epilog=examples(
        "report interference target.json ct fusellm fusionx",
        "report interference target.json mine=eval/fusionx --step last --output pages",
    )
)
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]PATH...")
@click.option(
    "--step", type=click.Choice(["best", "last"]), default="best", show_default=True, help="Of a folder, these files."
)
@click.option("--ct", metavar="NAME", help="Which model is plain continued training; by default the one called ct.")
@click.option(
    "--fusellm", metavar="NAME", help="Whose count is the ratio's divisor; by default the one called fusellm."
)
@click.option("--benchmarks", metavar="FILE", help="Also the tasks of this eval/benchmarks.json.")
@click.option("--bootstrap", type=click.IntRange(100), default=2000, show_default=True, help="Resamples of documents.")
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of “beyond noise”.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option(
    "--output", metavar="FOLDER", help="Also write interference.json, interference.md and interference.html there."
)
def interference(models: tuple[str, ...], as_json: bool, output: str | None, **options: Any) -> None:
    """What models do worse than the original target, domain by domain and task by task.

    Each PATH is an evaluation file, or a folder in which every best.json is a seed of one model. The first one is the
    original target, which the others are compared with:

    \b
      cd runs/NAME/eval
      fusionx report interference models/target.json ct fusellm fusionx
    """
    from fusionx.eval.report.interference_report import interference_results, terminal_text, write_interference
    from fusionx.eval.report.pages import finite
    from fusionx.pipelines.evaluation.interference_inputs import interference_inputs

    results = interference_results(interference_inputs(models, **options))
    if output is not None:
        write_interference(results, output)
    click.echo(json.dumps(finite(results), ensure_ascii=False) if as_json else terminal_text(results))


@click.command(
    epilog="\n".join(["\b", *(f"{name:<12}{shows}" for name, shows in STUDIES.items())])
    + "\n\n"
    + examples("study tau run.yaml", "study lambda run.yaml --method paper")
)
@click.argument("name", type=click.Choice(list(STUDIES)), metavar="NAME")
@config_argument
@click.option("--method", metavar="NAME", help="Whose fields the study changes: paper or fusionx.")
def study(name: str, config: str, overrides: tuple[str, ...], method: str | None) -> None:
    """Train a grid over the run's aligned shards, with every seed, and write its table and figure.

    Finished trainings are only read; a training that failed is shown as failed.
    """
    from fusionx.pipelines.study.run import run_study

    with opened_pipeline(config, overrides, read_only=True) as pipeline:  # the run keeps its own copy of its config
        files = run_study(pipeline.config, pipeline.layout, name, method)
    for path in [files.table, *files.figures]:
        click.echo(path)


@click.command(
    epilog=examples(
        "bench precompute",
        "bench all --json --output benchmarks/results",
        "bench crash --set points=200 --set losses=200 --set instants=100",
    )
)
@click.argument("name", type=click.Choice(["all", *BENCHMARKS, GPU, DAMAGE, CRASH, CONFIGS, DOCUMENTS, LOAD]))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line instead of a table.")
@click.option("--output", type=click.Path(file_okay=False), help="Also write its NAME.jsonl (gpu: add to it).")
@click.option("--set", "sizes", multiple=True, metavar="NAME=NUMBER", help="How much is measured; not with `all`.")
def bench(name: str, as_json: bool, output: str | None, sizes: tuple[str, ...]) -> None:
    """Measure one part of the system beside its reference, in the same run."""
    from fusionx.benchmarks.measuring.run import parsed_sizes, run_benchmark

    if sizes and name == "all":
        raise click.UsageError("--set belongs to one benchmark.")
    for chosen in BENCHMARKS if name == "all" else [name]:
        for figure in run_benchmark(chosen, output, **(parsed_sizes(chosen, sizes) if sizes else {})):
            click.echo(json.dumps(figure.to_json()) if as_json else figure.line())
