"""The command line: one command per stage, and `run` for all of them.

Imports nothing heavy before a command is chosen, so that `fusionx --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from benchmarks import BENCHMARKS
from contract.errors import EXIT_INCOMPLETE, ConfigError, FusionXError
from pipelines.study import STUDIES

if TYPE_CHECKING:
    from pipelines.road import Road

Command = TypeVar("Command", bound=Callable[..., Any])


class _Main(click.Group):
    """Turns the project's errors into a message and an exit code, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _check_packages()
            return super().invoke(ctx)
        except FusionXError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the road, not of the alphabet


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Fusion-X: make one language model learn what several others know.

    Every stage reads one CONFIG.yaml and skips what is done and valid. Exit codes: 0 complete, 1 incomplete or bad
    data, 2 bad usage or config, 75 told to stop (a training's checkpoint is saved).
    """


def _config_argument(command: Command) -> Command:
    command = click.option(
        "--set", "overrides", multiple=True, metavar="a.b=value", help="Override a config field; repeatable."
    )(command)
    return click.argument("config", type=click.Path())(command)


def _config_options(command: Command) -> Command:
    command = click.option("--overwrite", is_flag=True, help="Make stale output again instead of refusing it.")(command)
    return _config_argument(command)


def _source_option(command: Command) -> Command:
    return click.option("--source", default=None, metavar="ID", help="Only this source.")(command)


@contextmanager
def _road(config: str, overrides: tuple[str, ...], overwrite: bool = False, looks_only: bool = False) -> Iterator[Road]:
    from contract.config import load_config
    from pipelines.config import FusionConfig
    from pipelines.road import open_road

    with open_road(load_config(FusionConfig, config, overrides), overwrite, looks_only) as road:
        yield road


@main.command()
@_config_options
def chunk(config: str, overrides: tuple[str, ...], overwrite: bool) -> None:
    """Cut the corpus so that every chunk fits every tokenizer."""
    with _road(config, overrides, overwrite) as road:
        road.chunk()


@main.command()
@_config_options
@_source_option
def precompute(config: str, overrides: tuple[str, ...], overwrite: bool, source: str | None) -> None:
    """Write every source's top-k next-token distributions."""
    with _road(config, overrides, overwrite) as road:
        road.precompute(source)


@main.command()
@_config_options
@_source_option
def align(config: str, overrides: tuple[str, ...], overwrite: bool, source: str | None) -> None:
    """Map the sources' shards into the target's tokens and vocabulary."""
    with _road(config, overrides, overwrite) as road:
        road.align(source)


@main.command("explain-map")
@_config_argument
@click.argument("text", required=False)
@click.option("--source", required=True, metavar="ID", help="Whose tokens are mapped to the target's.")
@click.option("--map", "mode", default=None, help="mined, exact or first-token; by default the config's first map.")
def explain_map(config: str, overrides: tuple[str, ...], text: str | None, source: str, mode: str | None) -> None:
    """Where a source's tokens go in the target's vocabulary and why: those of TEXT, or counts and distances of all."""
    with _road(config, overrides, looks_only=True) as road:
        for line in road.explain_map(source, mode, text):
            click.echo(line)


@main.command()
@_config_options
@click.option(
    "--resume", default="auto", metavar="auto|PATH", help="Checkpoint that its training goes on from; auto: the last."
)
def train(config: str, overrides: tuple[str, ...], overwrite: bool, resume: str) -> None:
    """Train the target with every configured method and seed. Joins the others under torchrun or srun."""
    with _road(config, overrides, overwrite) as road:
        road.train(None if resume == "auto" else Path(resume))


@main.command("eval")
@_config_options
@click.option("--benchmarks", metavar="cs,bbh,mmlu,me", help="Public benchmarks, as --set eval.benchmarks=[...].")
@click.option(
    "--run-generated-code",
    is_flag=True,
    help="Let the benchmark me run programs that the models write, in a sandbox; as --set eval.code.run=true.",
)
def evaluate(
    config: str, overrides: tuple[str, ...], overwrite: bool, benchmarks: str | None, run_generated_code: bool
) -> None:
    """Evaluate all models and write the report."""
    if benchmarks is not None:
        overrides = (*overrides, f"eval.benchmarks=[{benchmarks}]")
    if run_generated_code:
        overrides = (*overrides, "eval.code.run=true")
    with _road(config, overrides, overwrite) as road:
        road.eval()


@main.command()
@_config_options
def run(config: str, overrides: tuple[str, ...], overwrite: bool) -> None:
    """All stages in order; finished work is kept."""
    from pipelines.road import STAGES

    with _road(config, overrides, overwrite) as road:
        road.check_benchmarks()
        for stage in STAGES:
            getattr(road, stage)()


@main.command()
@_config_argument
def status(config: str, overrides: tuple[str, ...]) -> None:
    """What is done, missing, damaged or stale, and why; exit code 1 unless all is complete."""
    from pipelines.status import status as status_of

    with _road(config, overrides, looks_only=True) as road:
        stages = list(status_of(road))
    for stage in stages:
        click.echo(stage.line())
    if not all(stage.complete for stage in stages):
        sys.exit(EXIT_INCOMPLETE)


@main.command()
@_config_argument
@click.option("--documents", default=200, show_default=True, help="Documents of the sample that is measured.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def plan(config: str, overrides: tuple[str, ...], documents: int, as_json: bool) -> None:
    """Measure a small sample and say what the whole corpus will take: tokens, hours, bytes. Writes nothing."""
    from contract.config import load_config
    from pipelines.config import FusionConfig
    from pipelines.plan import make_plan

    made = make_plan(load_config(FusionConfig, config, overrides), documents)
    click.echo(made.to_json() if as_json else made.table())


@main.group()
def report() -> None:
    """Reports of evaluations that are there, of this run or of any other; needs no config."""


@report.command()
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
    from eval.interference_report import interference_results, terminal_text, write_interference
    from eval.report import finite
    from pipelines.interference import interference_inputs

    results = interference_results(interference_inputs(models, **options))
    if output is not None:
        write_interference(results, output)
    click.echo(json.dumps(finite(results), ensure_ascii=False) if as_json else terminal_text(results))


@main.command(epilog="\b\n" + "\n".join(f"{name:<12}{shows}" for name, shows in STUDIES.items()))
@click.argument("name", type=click.Choice(list(STUDIES)), metavar="NAME")
@_config_argument
@click.option("--method", metavar="NAME", help="Whose fields the study changes: paper or fusionx.")
def study(name: str, config: str, overrides: tuple[str, ...], method: str | None) -> None:
    """Train a grid over the run's aligned shards, with every seed, and write its table and figure.

    Finished trainings are only read; a training that failed is shown as failed.
    """
    from pipelines.study.run import run_study

    with _road(config, overrides, looks_only=True) as road:  # the run keeps its own copy of its config
        files = run_study(road.config, road.layout, name, method)
    for path in [files.table, *files.figures]:
        click.echo(path)


@main.command()
@click.argument("name", type=click.Choice(["all", *BENCHMARKS]))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line instead of a table.")
@click.option("--output", type=click.Path(file_okay=False), help="Also write NAME.jsonl into this folder.")
def bench(name: str, as_json: bool, output: str | None) -> None:
    """Measure one part of the system beside its reference, in the same run."""
    from benchmarks.run import run_benchmark

    for chosen in BENCHMARKS if name == "all" else [name]:
        for figure in run_benchmark(chosen, output):
            click.echo(json.dumps(figure.to_json()) if as_json else figure.line())


def _check_packages() -> None:
    """The packages have everyday names; one of another project in front of ours would be imported without a word."""
    here = Path(__file__).resolve().parent.parent
    for name in ("contract", "precompute", "align", "train", "eval", "pipelines", "benchmarks"):
        found = find_spec(name)
        if found is None or found.origin is None or Path(found.origin).resolve().parent.parent != here:
            raise ConfigError(
                "A package of another project hides one of Fusion-X's.",
                field=name,
                found=found.origin if found else "nothing",
                expected=here / name,
                remedy="run from the checkout, in its own virtual environment (`make setup`)",
            )


def _add_demo_inputs() -> None:
    from pipelines.demo.inputs import demo_inputs

    main.add_command(demo_inputs)


_add_demo_inputs()

if __name__ == "__main__":
    sys.exit(main())
