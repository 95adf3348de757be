"""What a training leaves behind is taken for what it is: this job's, another's, or nothing yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusionx.contract.errors import DataError
from fusionx.train.config import PRESETS, OptimizerConfig, RunConfig, TrainJob
from fusionx.train.state.result import finished_result, is_stale, write_result


def job(output: Path, **changes: Any) -> TrainJob:
    fields: dict[str, Any] = {
        "method_name": "ct",
        "method": PRESETS["ct"],
        "seed": 0,
        "optimizer": OptimizerConfig(),
        "run": RunConfig(),
        "target": "target",
        "target_path": "models/target",
        "target_weights": "0123",
        "tokens": "tokens",
        "aligned": {},
        "inputs": {"tokens": "abc"},
        "output": str(output),
    }
    return TrainJob(**(fields | changes))


def test_nothing_yet(tmp_path: Path) -> None:
    assert finished_result(job(tmp_path)) is None
    assert not is_stale(job(tmp_path))


def test_a_result_is_its_jobs_alone(tmp_path: Path) -> None:
    mine = job(tmp_path)
    write_result(tmp_path, {"job": mine.digest(), "config": mine.content(), "steps": 7})
    result = finished_result(mine)
    assert result is not None
    assert result["steps"] == 7
    assert not is_stale(mine)
    other = job(tmp_path, optimizer=OptimizerConfig(learning_rate=0.5), inputs={"tokens": "xyz"})
    assert is_stale(other)
    with pytest.raises(DataError) as error:
        finished_result(other)
    assert "optimizer.learning_rate: found 3e-05, expected 0.5" in str(error.value)
    assert 'inputs.tokens: found "abc", expected "xyz"' in str(error.value)


def test_only_what_decides_the_weights_counts(tmp_path: Path) -> None:
    mine = job(tmp_path)
    write_result(tmp_path, {"job": mine.digest(), "config": mine.content()})
    assert finished_result(job(tmp_path, run=RunConfig(log_every=3, keep_checkpoints=9), tokens="elsewhere"))


@pytest.mark.parametrize("same", [True, False])
def test_a_checkpoint_of_another_job_is_stale(tmp_path: Path, same: bool) -> None:
    mine = job(tmp_path)
    mark = tmp_path / "checkpoints" / "step-00000010" / "state.json"
    mark.parent.mkdir(parents=True)
    mark.write_text(json.dumps({"job": mine.digest() if same else "another"}))
    assert is_stale(mine) is not same
