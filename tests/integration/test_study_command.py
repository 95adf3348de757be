"""A whole study from the command line: trained, shown with a failure, called again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.study import grids

CELLS = [
    grids.Cell(("whole",), "fusionx"),
    grids.Cell(("half, k 4",), "fusionx", {"k": 4}, {"data_share": 0.5}, candidates=2, against=("whole",)),
    grids.Cell(("k 99",), "fusionx", {"k": 99}, against=("whole",)),  # more than is stored: it fails when it starts
]


def test_a_study_from_the_command_line(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def study(_: FusionConfig, method: str) -> grids.Study:
        return grids.Study("tau", ("Cell",), CELLS, "dots")

    monkeypatch.setitem(grids.OF_ONE_METHOD, "tau", study)
    output = tmp_path / "out"
    methods = ("train.methods=[ct]", "train.optimizer.epochs=1", "train.run.log_every=1")
    for stage in ("chunk", "precompute", "align"):
        world.run(output, stage, *methods)
    first = world.here(output, "study tau", *methods)
    assert first.returncode == 1
    assert "1 of 3 trainings of the study failed" in first.stderr
    written = output / "studies" / "tau"
    table, figure = (written / "table.md").read_text(), (written / "figure.svg").read_text()
    assert "| k 99 | failed" in table
    assert figure.startswith("<svg")
    rows = pd.read_csv(written / "table.csv")
    assert rows["Cell"].tolist() == ["original target", "whole", "half, k 4", "k 99"]
    assert rows["Corpus, best step"].tolist()[3] == "failed"
    cells = json.loads((written / "results.json").read_text())["cells"]
    files = [Path(cell["trainings"]["0"]) / "result.json" for cell in cells]
    whole, half, wrong = (json.loads(file.read_text()) if file.is_file() else None for file in files)
    assert wrong is None
    assert whole["samples"] == 2 * half["samples"]
    assert sorted(half["config"]["inputs"]) == ["coder", "target", "tokens"]
    assert not (output / "train").exists()

    monkeypatch.setattr(grids, "OF_ONE_METHOD", {**grids.OF_ONE_METHOD, "tau": lambda *_: _without(study(*_), "k 99")})
    again = world.here(output, "study tau", *methods)
    assert again.returncode == 0
    assert "2 different trainings, 0 to do" in again.stderr
    assert again.stdout.split() == [str(written / "table.md"), str(written / "figure.svg")]


def _without(study: grids.Study, label: str) -> grids.Study:
    return grids.Study(
        study.name, study.columns, [cell for cell in study.cells if cell.labels != (label,)], study.figure
    )
