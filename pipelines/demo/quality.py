"""Tells how well each of the demo's models predicts each domain: a table of bits per byte on a split.

Run as `python -m fusionx.pipelines.demo.quality CONFIG`. The models are read as any Hugging Face folder would be.
"""

from __future__ import annotations

from pathlib import Path

import click

from fusionx.contract.config import load_config
from fusionx.pipelines.demo.config import DemoInputs
from fusionx.pipelines.demo.models import bits_per_byte


def table(rows: dict[str, dict[str, float]]) -> str:
    """Model -> domain -> bits per byte, as lines of text: a domain per line, a model per column, `*` at the best."""
    models = list(rows)
    lines = [f"{'domain':<18}" + "".join(f"{model:>10}" for model in models)]
    for domain in rows[models[0]]:
        costs = [rows[model][domain] for model in models]
        marks = ["*" if cost == min(costs) else " " for cost in costs]
        lines.append(f"{domain:<18}" + "".join(f"{cost:>9.3f}{mark}" for cost, mark in zip(costs, marks, strict=True)))
    return "\n".join(lines)


@click.command()
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a value of the config.")
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
def main(config_file: Path, overrides: tuple[str, ...], split: str) -> None:
    """Print bits per byte of every model on every domain of a split; lower is better."""
    config = load_config(DemoInputs, config_file, overrides)
    output = Path(config.output)
    text = output / "corpus" / f"{split}.parquet"
    rows = {model.id: bits_per_byte(output / "models" / model.id, text, config.device) for model in config.models}
    click.echo(table(rows))


if __name__ == "__main__":
    main()
