"""One command per stage, and `run` for all of them."""

from __future__ import annotations

from pathlib import Path

import click

from fusionx.cli.options import config_options, examples, opened_pipeline, source_option


@click.command(epilog=examples("chunk run.yaml"))
@config_options
def chunk(config: str, overrides: tuple[str, ...], overwrite: bool) -> None:
    """Cut the corpus so that every chunk fits every tokenizer."""
    with opened_pipeline(config, overrides, overwrite) as pipeline:
        pipeline.chunk()


@click.command(
    epilog=examples(
        "precompute run.yaml",
        "precompute run.yaml --source coder --set precompute.workers=16",
    )
)
@config_options
@source_option
def precompute(config: str, overrides: tuple[str, ...], overwrite: bool, source: str | None) -> None:
    """Write every source's top-k next-token distributions."""
    with opened_pipeline(config, overrides, overwrite) as pipeline:
        pipeline.precompute(source)


@click.command(epilog=examples("align run.yaml", "align run.yaml --source coder"))
@config_options
@source_option
def align(config: str, overrides: tuple[str, ...], overwrite: bool, source: str | None) -> None:
    """Map the sources' shards into the target's tokens and vocabulary."""
    with opened_pipeline(config, overrides, overwrite) as pipeline:
        pipeline.align(source)


@click.command(epilog=examples("generate run.yaml", "generate run.yaml --set generate.times=20"))
@config_options
def generate(config: str, overrides: tuple[str, ...], overwrite: bool) -> None:
    """Have the sources write more text like the corpus, each in the domains that it knows best.

    Follows `align`, by which it is told who knows what. Prints how to go on with the larger corpus.
    """
    with opened_pipeline(config, overrides, overwrite) as pipeline:
        click.echo(pipeline.generate())


@click.command(
    epilog=examples(
        "train run.yaml",
        "train run.yaml --set train.methods=[ct,fusionx] --set train.seeds=[0,1,2]",
    )
)
@config_options
@click.option(
    "--resume", default="auto", metavar="auto|PATH", help="Checkpoint that its training goes on from; auto: the last."
)
def train(config: str, overrides: tuple[str, ...], overwrite: bool, resume: str) -> None:
    """Train the target with every configured method and seed. Joins the others under torchrun or srun."""
    with opened_pipeline(config, overrides, overwrite) as pipeline:
        pipeline.train(None if resume == "auto" else Path(resume))


@click.command(
    "eval",
    epilog=examples(
        "eval run.yaml",
        "eval run.yaml --benchmarks cs,mmlu,gsm8k,my_task.yaml --limit 200",
        "eval run.yaml --benchmarks me --run-generated-code",
    ),
)
@config_options
@click.option(
    "--benchmarks",
    metavar="cs,bbh,mmlu,me,TASK,...",
    help="Public benchmarks, as --set eval.benchmarks=[...]: these, and any task, group or task file (.yaml) of "
    "lm-evaluation-harness.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Items per task of a benchmark; as --set eval.harness.limit=N."
)
@click.option(
    "--run-generated-code",
    is_flag=True,
    help="Let the benchmark me run programs that the models write, in a sandbox; as --set eval.code.run=true.",
)
def evaluate(
    config: str,
    overrides: tuple[str, ...],
    overwrite: bool,
    benchmarks: str | None,
    limit: int | None,
    run_generated_code: bool,
) -> None:
    """Evaluate all models, write the report, and put the recommended model into model/."""
    if benchmarks is not None:
        overrides = (*overrides, f"eval.benchmarks=[{benchmarks}]")
    if limit is not None:
        overrides = (*overrides, f"eval.harness.limit={limit}")
    if run_generated_code:
        overrides = (*overrides, "eval.code.run=true")
    with opened_pipeline(config, overrides, overwrite) as pipeline:
        click.echo(pipeline.eval())


@click.command(
    epilog=examples(
        "run run.yaml",
        "run run.yaml --dry-run",
        "run run.yaml --set output=runs/second --set precompute.k=64",
    )
)
@config_options
@click.option("--dry-run", is_flag=True, help="Check what is checked at once, say what would be made; make nothing.")
def run(config: str, overrides: tuple[str, ...], overwrite: bool, dry_run: bool) -> None:
    """All stages in order; finished work is kept."""
    with opened_pipeline(config, overrides, overwrite, read_only=dry_run) as pipeline:
        if dry_run:
            from fusionx.pipelines.dry_run import dry_run as steps

            for line in steps(pipeline):
                click.echo(line)
        else:
            click.echo(pipeline.run())
