"""Before a run: a first config, the machine and the config examined, and the keys that a config may have."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from fusionx.cli.options import examples
from fusionx.contract.errors import EXIT_INCOMPLETE

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command(
    epilog=examples(
        "init",
        "init run.yaml --target models/mine --source Qwen/Qwen2.5-0.5B --source models/other --corpus texts --yes",
    )
)
@click.argument("config", type=click.Path(path_type=Path), default=Path("run.yaml"))
@click.option("--target", metavar="MODEL", help="The model that learns: a folder, a hub id or a GGUF file.")
@click.option("--source", "sources", multiple=True, metavar="MODEL", help="A model to learn from; repeatable.")
@click.option("--corpus", metavar="PLACE", help="A file or folder of Parquet, JSONL or text, or a hub data set.")
@click.option("--output", metavar="FOLDER", help="Where the run writes; by default runs/ and the config's name.")
@click.option("--yes", is_flag=True, help="Ask nothing: what is not given has its default, or is an error.")
@click.option("--force", is_flag=True, help="Overwrite a config that is there.")
def init(
    config: Path,
    target: str | None,
    sources: tuple[str, ...],
    corpus: str | None,
    output: str | None,
    yes: bool,
    force: bool,
) -> None:
    """Write a first config to CONFIG (run.yaml), with comments; asks for what no option says."""
    from fusionx.contract.errors import ConfigError
    from fusionx.pipelines.preflight.first_config import first_config, missing_places

    if config.exists() and not force:
        raise ConfigError("There is a config already.", file=config, remedy="name another file, or add --force")
    if yes and not (target and sources and corpus):
        raise click.UsageError("With --yes, --target, --source and --corpus are needed.")
    target = target or click.prompt("Target, the model that learns (folder, hub id or GGUF file)")
    sources = sources or tuple(click.prompt("Sources to learn from, separated by spaces").split())
    corpus = corpus or click.prompt("Corpus (file, folder or hub data set)")
    default = f"runs/{config.stem}"
    output = output or (default if yes else click.prompt("Output folder", default=default))
    text = first_config(str(target), sources, str(corpus), str(output))
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(text, encoding="utf-8")
    for place in missing_places([target, *sources], corpus):
        click.echo(f"note: {place} is not there yet", err=True)
    click.echo(f"{config} is written. Next: fusionx doctor {config}")


@click.command("examples", epilog=examples("examples", "examples elsewhere"))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path("."))
def shipped_files(folder: Path) -> None:
    """Write the configs of the demos and of the paper, and job files for clusters, into FOLDER (this one).

    They get the names that the documents give them: configs/demo.yaml and so on. Files that are there are kept.
    """
    from fusionx.pipelines.preflight.shipped_files import write_shipped_files

    for name, written in write_shipped_files(folder):
        click.echo(f"{'written' if written else 'kept':<8} {name}")


@click.command(epilog=examples("doctor", "doctor run.yaml", "doctor run.yaml --set precompute.num_gpus=1 --json"))
@click.argument("config", type=click.Path(), required=False)
@click.option("--set", "overrides", multiple=True, metavar="a.b=value", help="Override a config field; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def doctor(config: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Examine this machine and, with CONFIG, whether the run can be carried out on it; exit code 1 if not.

    Loads no weights and starts nothing. `run` makes the quick ones of these checks by itself.
    """
    from fusionx.contract.config import load_config
    from fusionx.pipelines.config import FusionConfig
    from fusionx.pipelines.preflight.doctor import examine

    if config is None and overrides:
        raise click.UsageError("--set changes a config, and CONFIG is missing.")
    healthy = True
    for finding in examine(load_config(FusionConfig, config, overrides) if config is not None else None):
        healthy = healthy and finding.level != "problem"
        if as_json:
            click.echo(json.dumps(asdict(finding), ensure_ascii=False))
        else:
            head, rest = finding.line()[:8], finding.line()[8:]
            click.echo(click.style(head, fg=_COLOURS[finding.level]) + rest)
    if not healthy:
        sys.exit(EXIT_INCOMPLETE)


@click.command(epilog=examples("schema > fusionx.schema.json"))
def schema() -> None:
    """Print the JSON schema of a run's config, by which editors complete and check it.

    In an editor with the YAML language server, a config's first line names it:
    "# yaml-language-server: $schema=fusionx.schema.json".
    """
    from fusionx.pipelines.config import FusionConfig

    click.echo(json.dumps(FusionConfig.model_json_schema(), indent=1, ensure_ascii=False))
