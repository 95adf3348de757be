"""Runs a benchmark by name and keeps its figures with the machine that they were measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from datetime import date
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

from fusionx.benchmarks import GPU
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.contract.errors import ConfigError

PACKAGES = ("torch", "transformers", "tokenizers", "pyarrow", "numpy")


def run_benchmark(name: str, output: str | None = None, **sizes: Any) -> Iterator[Figure]:
    """Figures of `benchmarks.<name>` as they come; with `output` also `<output>/<name>.jsonl`, the machine first.

    The figures of `gpu` are added to the file, each with its card, the versions and the day.

    `sizes` are parameters of that benchmark's `figures`; without them it measures what is published.
    """
    figures = []
    for figure in import_module(f"fusionx.benchmarks.{name}").figures(**sizes):
        figures.append(figure)
        yield figure
    if output is not None:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        if name == GPU:
            _append(folder / f"{name}.jsonl", figures)
            return
        lines = [{"machine": machine()}, *(figure.to_json() for figure in figures)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def parsed_sizes(name: str, assignments: Sequence[str]) -> dict[str, int]:
    """`NAME=NUMBER` texts as the numbers that a benchmark takes.

    Raises:
        ConfigError: it takes no such number, or what is given is none.
    """
    parameters = signature(import_module(f"fusionx.benchmarks.{name}").figures).parameters
    known = [key for key, parameter in parameters.items() if parameter.annotation == "int"]
    sizes = {}
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if key not in known or not value.isdecimal():
            raise ConfigError(
                f"The benchmark '{name}' does not take this number.",
                field="--set",
                found=assignment,
                expected=", ".join(f"{each}=NUMBER" for each in known) or "none",
            )
        sizes[key] = int(value)
    return sizes


def _append(file: Path, figures: list[Figure]) -> None:
    found = machine()
    card = found["gpu"] or f"none (CPU, sizes turned down): {found['processor']}"
    versions = {package: found[package] for package in PACKAGES}
    where = {"card": card, "versions": versions, "date": date.today().isoformat()}
    with file.open("a") as lines:
        lines.writelines(json.dumps(figure.to_json() | where) + "\n" for figure in figures)


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = {name: version(name) for name in PACKAGES}
    return {"cpus": os.cpu_count(), "processor": _processor(), "gpu": gpu, **packages}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
