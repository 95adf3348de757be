"""The demo's own command."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo-inputs")
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a value of the config.")
@click.option("--only", metavar="PART", help="corpus, models, siblings, or the id of one model.")
def demo_inputs(config_file: Path, overrides: tuple[str, ...], only: str | None) -> None:
    """Make the demo's inputs from the Python installation: a corpus, four models, skill tasks."""
    from fusionx.contract.config import load_config
    from fusionx.pipelines.demo.config import DemoInputs
    from fusionx.pipelines.demo.inputs import make_inputs

    make_inputs(load_config(DemoInputs, config_file, overrides), only)
