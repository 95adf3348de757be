"""The public benchmarks, and a task of one's own, on every model of a run, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

METHODS = ("ct", "fusellm", "paper", "fusionx-network", "fusionx")


def test_benchmarks_stand_among_the_tasks_of_the_report(
    world: Any, finished: Path, commonsense: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{number} is", "gold": 0}}\n' for number in range(9)))
    own = {
        "task": "odd",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": ["odd", "even"],
        "doc_to_target": "gold",
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    command = f"eval --benchmarks cs,{tmp_path / 'own.yaml'} --limit 7"
    arguments = (output, command, f"eval.harness.data={commonsense}")
    world.run(*arguments)
    results = json.loads((output / "report" / "results.json").read_text())
    scores = json.loads((output / "eval" / "benchmarks.json").read_text())["models"]
    assert len(scores) >= 3 + 2 * len(METHODS), "target, sources, and every method at its best and last step"
    names = {path.name for path in (commonsense / "cs").iterdir()}
    for method in METHODS:
        for step in ("best", "last"):
            units = results["interference"][method][step]["units"]
            assert names <= {unit["name"] for unit in units if unit["kind"] == "task"}
    found = next(figures for folder, figures in scores.items() if folder.endswith("target"))["tasks"]["arc_easy"]
    assert results["methods"]["target"]["mean"]["best"]["tasks"]["arc_easy"] == found["score"]

    told = results["tasks"]
    assert set(told["groups"]["cs"]) == names
    assert names | {"odd"} <= set(told["groups"]["all"])
    assert set(told["models"]) == {"target", "coder", "writer"}
    about, at_target = told["tasks"]["odd"], told["models"]["target"]["tasks"]["odd"]
    assert (about["n"], about["share"]) == (7, True)
    low, high = at_target["interval"]
    assert 0 <= low <= at_target["score"] <= high <= 1
    page = (output / "report" / "report.md").read_text()
    assert f"| odd (7 items) | {100 * at_target['score']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) |" in page

    before = (output / "eval" / "benchmarks.json").stat().st_mtime_ns
    world.run(*arguments)
    assert (output / "eval" / "benchmarks.json").stat().st_mtime_ns == before
