"""What stands first in the report: the answers, the losses, and what a user would do instead."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusionx.eval.report.answers import cards
from fusionx.eval.report.pages import ReportInputs, write_report
from fusionx.eval.report.verdict import number, signed_percent

MakeInputs = Callable[..., ReportInputs]


@pytest.fixture(scope="module")
def full(make_inputs: MakeInputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportInputs, Path]:
    inputs, folder = make_inputs(bootstrap=200), tmp_path_factory.mktemp("report")
    write_report(inputs, folder)
    return inputs, folder


def test_what_models_write_stands_side_by_side(full: tuple[ReportInputs, Path]) -> None:
    _, folder = full
    results = json.loads((folder / "results.json").read_text())
    assert [found["prompt"] for found in results["continuations"]] == ["It was\nin books", "It was\nin law"]
    text = (folder / "report.md").read_text()
    section = text[text.index("## What the models write") : text.index("## How it went")]
    first = section[section.index("books") : section.index("law")]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in first.splitlines() if line.startswith("| ")]
    assert rows[2:6] == ["The beginning", "The document itself", "Fusion-X", "Original target"]
    assert "| Fusion-X |  fusionx-1-best |" in first
    assert "Continual training" in rows


def macro(evaluation: Any, domains: list[str]) -> float:
    return sum(evaluation.domains[d]["bits_per_byte"] for d in domains) / len(domains)


def test_the_first_screen_answers_what_is_asked_first(full: tuple[ReportInputs, Path]) -> None:
    _, folder = full
    results = json.loads((folder / "results.json").read_text())
    comparison = results["comparison"]
    helped, hurt, cost = cards(results)
    own = comparison["vs_target"]["best"]["corpus"]
    assert helped.value == signed_percent(own["mean"])
    for told, key in zip(helped.details, ("vs_target", "bpb_vs_ct", "bpb_vs_fusellm"), strict=False):
        for number_in_it in comparison[key]["best"]["corpus"]["ci95"]:
            assert signed_percent(number_in_it) in told
    absent = comparison["vs_target"]["best"]["absent"]
    told_where = helped if absent["mean"] < 0 else hurt
    assert any(told.startswith(f"{signed_percent(absent['mean'])} on domains absent") for told in told_where.details)
    counts = {method: of["best"]["vs_target"] for method, of in comparison["degraded"].items()}
    assert hurt.value == f"{number(counts['fusionx']['raw'])} of 14"
    units = results["interference"]["fusionx"]["best"]["units"]
    worse = sorted((unit for unit in units if unit["loss"] > 0), key=lambda unit: -unit["loss"])
    for unit, told in zip(worse[:3], hurt.details, strict=False):
        assert told.startswith(f"{unit['name']} ")
    others = [f"{number(counts[m]['raw'])} ({number(counts[m]['beyond_noise'])})" for m in ("ct", "fusellm")]
    assert all(told in hurt.details[-1] for told in others)
    assert cost.value == "1 h 08 min"
    assert "train (12 trainings) 1 h 06 min" in cost.details


def test_losses_are_told_first_and_the_worst_of_them_before_the_others(full: tuple[ReportInputs, Path]) -> None:
    _, folder = full
    results = json.loads((folder / "results.json").read_text())
    text = (folder / "report.md").read_text()
    assert text.index("## Where it hurt") < text.index("## How it went") < text.index("## Every domain")
    section = text[text.index("## Where it hurt") : text.index("## How it went")]
    told = re.findall(r"^\| (\w+)(?: \(\w+\))? \| [+−]", section, flags=re.MULTILINE)
    losses = {unit["name"]: unit["loss"] for unit in results["interference"]["fusionx"]["best"]["units"]}
    assert told == [name for name in sorted(losses, key=lambda name: -losses[name]) if losses[name] > 0]
    assert told


def test_the_methods_stand_beside_what_a_user_would_do_instead(full: tuple[ReportInputs, Path]) -> None:
    inputs, folder = full
    text = (folder / "report.md").read_text()
    section = text[text.index("## Beside what you would do instead") : text.index("## Where it hurt")]
    rows = re.findall(r"^\| ([^|]+?) \| \**([\d.]+)\**(?: \(([^)(]+) \(([^)]+)\)\))?", section, flags=re.MULTILINE)
    bits = [float(value) for _, value, _, _ in rows]
    assert bits == sorted(bits)
    names = {name for name, *_ in rows}
    assert {"Fusion-X (trained)", "Continual training (trained)", "Original target (as it is)"} < names
    assert any(name.endswith("(the best source alone)") for name in names)
    (ensemble,) = (name for name in names if name.endswith("(the best ensemble)"))
    assert not ensemble.startswith("Oracle")
    assert inputs.ensembles is not None
    runs = inputs.ensembles.models["fusionx"]
    start = macro(inputs.original, inputs.train_domains)
    expected = sum(macro(run, inputs.train_domains) for run in runs) / len(runs) / start - 1
    (of_fusionx,) = (row for row in rows if row[0] == "Fusion-X (trained)")
    assert of_fusionx[2] == signed_percent(expected)
    low, high = (float(limit.replace("−", "-")) for limit in of_fusionx[3].split("\u00a0to\u00a0"))
    assert low < 100 * expected < high
