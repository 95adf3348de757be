"""Before a run: a first config, the machine and the config examined, and the keys that a config may have."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from fusionx.cli.options import examples
from fusionx.contract.errors import EXIT_INCOMPLETE

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


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
