"""Configs changed at random: each is refused by an error of ours or used; and the trials themselves can fail."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import in_a_fork

from fusionx.benchmarks.configs import trials
from fusionx.benchmarks.configs.trials import figures, mutated
from fusionx.contract.errors import ConfigError, IncompleteError

SIZES = {"mutations": 120, "checked": 8, "runs": 2}


def counts(sizes: dict[str, int]) -> dict[tuple[str, str], float]:
    return {(figure.case, figure.metric): figure.value for figure in figures(**sizes)}


def test_none_ends_in_a_traceback() -> None:
    found = in_a_fork(counts, SIZES)
    assert [found[case, "tried"] for case in ("read", "checked", "run")] == [*SIZES.values()]
    assert found["read", "refused"] + found["read", "valid"] == SIZES["mutations"]
    assert found["read", "valid"] > 0
    assert found["checked", "complete"] > 0
    assert found["run", "complete"] > 0


@pytest.mark.parametrize(
    "error", [KeyError("epochs"), ConfigError("wrong"), ConfigError("wrong", file="mutated.yaml", found="x" * 5000)]
)
def test_a_traceback_and_a_poor_error_are_told(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def careless(*_: Any) -> None:
        raise error

    monkeypatch.setattr(trials, "load_config", careless)
    monkeypatch.setattr(trials, "prepare", lambda: None)
    with pytest.raises(IncompleteError, match="traceback"):
        list(figures(mutations=3, checked=0, runs=0))
    said = capsys.readouterr().err
    assert "read 2: " in said
    assert ("KeyError" in said) == isinstance(error, KeyError)


def test_changes_are_many_and_the_same_for_a_seed() -> None:
    config = {"name": "a", "sources": [{"id": "one", "path": "b"}], "train": {"epochs": 2}}
    made = [mutated(config, random.Random(seed)) for seed in range(200)]
    assert made == [mutated(config, random.Random(seed)) for seed in range(200)]
    assert len(set(made)) > 150
    plain = yaml.safe_dump(config, sort_keys=False).encode()
    assert sum(text != plain for text in made) > 180
    assert config["train"] == {"epochs": 2}, "the given one stays"


def dying_run(file: Path) -> tuple[str, str]:
    trials.run = lambda *_: 1 // 0  # type: ignore[assignment]
    return trials._run(file, dry=False)


def run_without_a_module(file: Path) -> tuple[str, str]:
    sys.modules["fusionx.pipelines.dry_run"] = None  # type: ignore[assignment]
    return trials._run(file, dry=True)


@pytest.mark.parametrize(("trial", "error"), [(dying_run, "ZeroDivision"), (run_without_a_module, "ModuleNotFound")])
def test_a_run_that_dies_is_no_error_of_ours(
    trial: Callable[[Path], tuple[str, str]], error: str, tmp_path: Path
) -> None:
    outcome, shown = in_a_fork(trial, tmp_path / "config.yaml")
    assert outcome == "traceback"
    assert error in shown
