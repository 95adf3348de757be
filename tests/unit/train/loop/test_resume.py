"""Killed, stopped, poisoned or called again: a training ends exactly like an undisturbed one, or says why not."""

from __future__ import annotations

import itertools
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainings import ALONE, METHODS, Make, assert_same_training

import fusionx.train.loop.trainer
import fusionx.train.state.checkpoint
from fusionx.contract.errors import DataError, StoppedError
from fusionx.contract.files.sealed import read_sealed
from fusionx.train.config import TrainJob
from fusionx.train.loop.trainer import Trainer, run_job
from fusionx.train.state.result import read_log


class _KilledError(BaseException):
    """Like a signal: no handler of the product may swallow it."""


def kill_before(monkeypatch: pytest.MonkeyPatch, job: TrainJob, step: int, method: str = "step") -> None:
    """Runs `job` and stops it where `method` of the trainer is entered at `step`."""
    original = getattr(Trainer, method)

    def dying(self: Trainer, *arguments: Any) -> Any:
        if self.state.step == step:
            raise _KilledError
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, method, dying)
        with pytest.raises(_KilledError):
            run_job(job)
    assert not (Path(job.output) / "result.json").exists()


@pytest.mark.parametrize(
    ("method", "step"),
    [*((method, 5) for method in METHODS), *(("fusionx-network", step) for step in (0, 2, 3, 4, 8, 9))],
)
def test_killed_and_resumed(
    method: str, step: int, finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(tmp_path / "out", method)
    kill_before(monkeypatch, job, step)
    run_job(job)
    assert_same_training(tmp_path / "out", finished(method))


@pytest.mark.parametrize(
    ("where", "step"), [("_validate", 0), ("_validate", 8), ("_save", 6), ("_log_step", 6), ("_finish", 10)]
)
def test_killed_elsewhere(
    where: str, step: int, finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(tmp_path / "out", "fusionx-network")
    kill_before(monkeypatch, job, step, where)
    run_job(job)
    assert_same_training(tmp_path / "out", finished("fusionx-network"))


def test_killed_twice_and_while_writing_a_checkpoint(
    finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(tmp_path / "out", "fusionx-network")
    kill_before(monkeypatch, job, 4)
    with monkeypatch.context() as patch:

        def dying(*_: object) -> None:
            raise _KilledError

        patch.setattr(fusionx.train.state.checkpoint, "save_file", dying)  # in the midst of the checkpoint of step 6
        with pytest.raises(_KilledError):
            run_job(job)
    assert [path.name for path in sorted((tmp_path / "out" / "checkpoints").glob("step-*"))] == ["step-00000003"]
    run_job(job)
    assert_same_training(tmp_path / "out", finished("fusionx-network"))
    assert not (tmp_path / "out" / "checkpoints").exists()  # a finished job never resumes


def test_the_order_in_which_sources_are_listed_decides_nothing(
    finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a checkpoint resumed after a reordering would give each candidate another one's gate."""
    job = make(tmp_path / "out", "fusionx-network")
    kill_before(monkeypatch, job, 4)
    turned = make(tmp_path / "out", "fusionx-network", aligned=dict(reversed(job.aligned.items())))
    assert list(turned.aligned) != list(job.aligned)
    run_job(turned)
    assert_same_training(tmp_path / "out", finished("fusionx-network"))


def test_a_checkpoint_of_another_job_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_before(monkeypatch, make(tmp_path / "out", "fusionx-network"), 4)
    with pytest.raises(DataError, match="another training") as caught:
        run_job(make(tmp_path / "out", "fusionx-network", seed=1, run={"log_every": 1}))
    assert (caught.value.details["field"], caught.value.details["found"]) == ("seed", "seed: found 0, expected 1")
    assert caught.value.details["file"].endswith("step-00000003")


def test_going_on_from_an_earlier_checkpoint(
    finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(tmp_path / "out", "fusionx-network")
    kill_before(monkeypatch, job, 8)
    run_job(job, resume=tmp_path / "out" / "checkpoints" / "step-00000003")
    assert_same_training(tmp_path / "out", finished("fusionx-network"))


def test_a_log_that_lost_lines_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make(tmp_path / "out", "fusionx-network")
    kill_before(monkeypatch, job, 4)
    (tmp_path / "out" / "log.jsonl").unlink()
    with pytest.raises(DataError, match=r"log.jsonl"):
        run_job(job)


def test_a_finished_job(
    finished: Callable[[str], Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is only read the second time; under a changed config it is refused, and the field is named."""
    output = tmp_path / "out"
    shutil.copytree(finished("ct"), output)
    (output / "checkpoints" / "step-00000009").mkdir(parents=True)  # killed after its result, before it deleted them
    job = make(output, "ct", run={"log_every": 3})
    with monkeypatch.context() as patch:
        patch.setattr(fusionx.train.loop.trainer, "Trainer", None)
        assert run_job(job) == read_sealed(output / "result.json", "")
    assert not (output / "checkpoints").exists()
    for field, changed in (
        ("optimizer", {"optimizer": {"epochs": 5}}),
        ("seed", {"seed": 3}),
        ("inputs", {"inputs": {"tokens": "other"}}),
        ("run", {"run": {"validate_every": 5}}),
    ):
        with pytest.raises(DataError) as caught:
            run_job(make(output, "ct", **changed))
        assert caught.value.details["field"].split(".")[0] == field
        assert caught.value.details["file"] == str(output / "result.json")


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], factor: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Multiplies the loss of these steps."""
    original = fusionx.train.loop.trainer.selection_loss
    calls = itertools.count()

    def broken(*arguments: Any) -> Any:
        loss = original(*arguments)
        return loss * factor(loss) if next(calls) in steps else loss

    monkeypatch.setattr(fusionx.train.loop.trainer, "selection_loss", broken)


@pytest.mark.parametrize(
    "factor",
    # sqrt at 0: value 0, gradient infinite, times 0: a finite loss whose gradient is NaN.
    [lambda loss: loss * math.nan, lambda loss: loss * math.inf, lambda loss: (loss * 0).sqrt()],
    ids=["nan", "inf", "gradient"],
)
def test_a_step_that_is_not_finite_is_skipped(
    factor: Callable[[torch.Tensor], torch.Tensor], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes no weight, is counted, and the log names its chunks."""
    job = make(tmp_path / "out", "fusionx-network")
    poison(monkeypatch, {4, 6}, factor)
    result = run_job(job)
    assert result["skipped"] == 2
    skipped = [line for line in read_log(tmp_path / "out") if line["event"] == "skipped"]
    assert [line["step"] for line in skipped] == [5, 7]
    assert [[tuple(key) for key in line["keys"]] for line in skipped] == [keys_of(job, step) for step in (4, 6)]
    assert "nan" in skipped[0]["asn_grad_norm"] or "inf" in skipped[0]["asn_grad_norm"]
    for which in ("last", "best"):
        for tensor in load_file(tmp_path / "out" / which / "model.safetensors").values():
            assert torch.isfinite(tensor).all()


def test_too_many_skipped_steps_stop_the_run(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before a kill count; mended, the run goes on from the checkpoint."""
    job = make(tmp_path / "out", "fusionx-network", run={"skip_limit": 2})
    with monkeypatch.context() as patch:
        poison(patch, {2, 5}, lambda loss: loss * math.nan)
        with pytest.raises(DataError, match="2 steps") as caught:
            run_job(job)
    assert caught.value.details["field"] == "step 6"
    assert str(keys_of(job, 5)) in caught.value.details["expected"]
    assert (tmp_path / "out" / "checkpoints" / "step-00000003" / "state.json").exists()
    assert run_job(job)["skipped"] == 1


def keys_of(job: TrainJob, step: int) -> list[tuple[int, int]]:
    return [key for batch in Trainer(job, ALONE).batches[step] for key in batch.keys]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_told_to_stop(
    number: signal.Signals,
    finished: Callable[[str], Path],
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step is finished and saved, the exit code says so, and the run goes on to the same end."""
    job = make(tmp_path / "out", "fusionx-network")
    original = Trainer.step

    def told(self: Trainer, batches: Any) -> None:
        if self.state.step == 4:
            signal.raise_signal(number)
        original(self, batches)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", told)
        with pytest.raises(StoppedError) as caught:
            run_job(job)
    assert caught.value.exit_code == 75
    assert "step 5 of 10" in caught.value.details["found"]
    assert signal.getsignal(number) == before
    assert (tmp_path / "out" / "checkpoints" / "step-00000005" / "state.json").exists()
    run_job(job)
    assert_same_training(tmp_path / "out", finished("fusionx-network"))
