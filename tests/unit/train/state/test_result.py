"""What a training leaves behind is taken for what it is: this job's, another's, or nothing yet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.sealed import seal_folder, write_sealed
from fusionx.train.config import PRESETS, OptimizerConfig, RunConfig, TrainJob
from fusionx.train.state.result import EXPORTS, LOG, finished_result, is_stale, write_result


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


def test_the_log_is_on_the_disk_before_the_result_vouches_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loss of power leaves a result whose log is cut short, and nothing but `--overwrite` helps."""
    flushed: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    (tmp_path / LOG).write_text('{"event": "step"}\n')
    write_result(tmp_path, {"job": "digest"})
    assert flushed == [LOG, ".result.json.tmp", tmp_path.name]


def test_nothing_yet(tmp_path: Path) -> None:
    assert finished_result(job(tmp_path)) is None
    assert not is_stale(job(tmp_path))


def finish(output: Path, mine: TrainJob, **result: Any) -> None:
    """With its log and both exports."""
    (output / LOG).write_text('{"event": "step"}\n')
    for name in EXPORTS:
        (output / name).mkdir()
        (output / name / "model.safetensors").write_bytes(b"weights")
        (output / name / "README.md").write_text("the card")
        seal_folder(output / name)
    write_result(output, {"job": mine.digest(), "config": mine.content(), **result})


def test_a_result_is_its_jobs_alone(tmp_path: Path) -> None:
    mine = job(tmp_path)
    finish(tmp_path, mine, steps=7)
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
    finish(tmp_path, mine)
    assert finished_result(job(tmp_path, run=RunConfig(log_every=3, keep_checkpoints=9), tokens="elsewhere"))


@pytest.mark.parametrize("same", [True, False])
def test_a_checkpoint_of_another_job_is_stale(tmp_path: Path, same: bool) -> None:
    mine = job(tmp_path)
    mark = tmp_path / "checkpoints" / "step-00000010" / "state.json"
    write_sealed(mark, {"job": mine.digest() if same else "another"})
    assert is_stale(mine) is not same


@pytest.mark.parametrize("name", ["result.json", "log.jsonl"])
def test_a_damaged_result_is_refused(tmp_path: Path, name: str) -> None:
    """And is stale, so that --overwrite trains anew; so is one whose exported model is damaged, or gone."""
    mine = job(tmp_path)
    finish(tmp_path, mine, steps=7)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content.replace(b"st", b"ts", 1))
    assert is_stale(mine)
    with pytest.raises(DamageError) as caught:
        finished_result(mine)
    assert caught.value.details["file"] == str(tmp_path / name)
    assert "--overwrite" in caught.value.details["remedy"]


def test_a_damaged_export_makes_a_finished_training_stale(tmp_path: Path) -> None:
    mine = job(tmp_path)
    finish(tmp_path, mine)
    (tmp_path / "best" / "README.md").write_text("the card, with the evaluation")
    assert not is_stale(mine)
    (tmp_path / "best" / "model.safetensors").write_bytes(b"weigths")
    assert is_stale(mine)
    (tmp_path / "best" / "model.safetensors").unlink()
    assert is_stale(mine)
    assert finished_result(mine) is not None  # a study reads the result only, and its exports may be deleted
