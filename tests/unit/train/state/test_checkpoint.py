"""Checkpoints: exact, whole at any instant, in the background, and refused where they do not belong."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import in_a_fork
from safetensors import SafetensorError
from tiny_model import TinyModel
from torch import nn

import fusionx.train.state.checkpoint
from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.atomic_folder import atomic_folder, recover
from fusionx.train.state.background import BackgroundWriter
from fusionx.train.state.checkpoint import Checkpointer, TrainState, finished_checkpoints
from fusionx.train.state.state_dicts import full_state_dict

CONTENT = {"seed": 0, "optimizer": {"learning_rate": 1e-3, "batch_size": 4}, "target": "t"}


class Training:
    """A model and a second network with their optimizers, and steps that depend on the step's number only."""

    def __init__(self, folder: Path, seed: int = 0, content: dict[str, Any] = CONTENT, keep: int = 2) -> None:
        self.model, self.asn = TinyModel(seed), nn.Linear(4, 3)
        self.optimizers = [
            torch.optim.AdamW(module.parameters(), lr=rate, fused=True)
            for module, rate in ((self.model, 1e-2), (self.asn, 1e-3))
        ]
        parts = {"model": (self.model, self.optimizers[0]), "asn": (self.asn, self.optimizers[1])}
        self.writer = BackgroundWriter()
        self.checkpoints = Checkpointer(folder, content, parts, keep, self.writer)
        self.state = TrainState()

    def step(self) -> None:
        torch.manual_seed(self.state.step)
        ids = torch.randint(0, 41, (2, 6))
        (self.model(ids) + self.asn(torch.randn(5, 4)).square().mean()).backward()
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] *= 0.9
            optimizer.step()
            optimizer.zero_grad()
        self.state.step += 1

    def save(self) -> None:
        self.checkpoints.save(self.state)
        self.writer.wait()

    def assert_equal(self, other: Training) -> None:
        for ours, theirs in ((self.model, other.model), (self.asn, other.asn)):
            left, right = ours.state_dict(), theirs.state_dict()
            assert left.keys() == right.keys()
            assert all(torch.equal(left[name], right[name]) for name in left)
        for ours, theirs in zip(self.optimizers, other.optimizers, strict=True):
            left, right = ours.state_dict(), theirs.state_dict()
            assert left["param_groups"] == right["param_groups"]
            assert left["state"].keys() == right["state"].keys()
            for index, values in left["state"].items():
                assert values.keys() == right["state"][index].keys() == {"step", "exp_avg", "exp_avg_sq"}
                for key, value in values.items():
                    assert torch.equal(value, right["state"][index][key])
                    assert value.dtype == right["state"][index][key].dtype


@pytest.fixture
def saved(tmp_path: Path) -> Training:
    """A training of three steps, saved at the third."""
    training = Training(tmp_path / "checkpoints")
    for _ in range(3):
        training.step()
    training.save()
    return training


def folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())


def test_goes_on_bit_exactly(tmp_path: Path, saved: Training) -> None:
    saved.state.best_bits_per_byte = 1 / 3
    saved.state.window = {"sums": [[0.1, 0.2]]}
    saved.step()
    saved.save()
    resumed = Training(tmp_path / "checkpoints", seed=1)
    resumed.state = resumed.checkpoints.load() or TrainState()
    assert resumed.state == saved.state
    assert resumed.state.step == 4
    resumed.assert_equal(saved)
    for training in (saved, resumed):
        training.step()
    resumed.assert_equal(saved)


def test_there_is_none_yet(tmp_path: Path) -> None:
    assert Training(tmp_path / "checkpoints").checkpoints.load() is None


def test_saved_before_the_first_step(tmp_path: Path) -> None:
    """The optimizer remembers nothing then."""
    training, resumed = Training(tmp_path / "checkpoints"), Training(tmp_path / "checkpoints", seed=1)
    training.save()
    resumed.checkpoints.load()
    for each in (training, resumed):
        each.step()
        each.step()
    resumed.assert_equal(training)


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path, saved: Training) -> None:
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "checkpoints" / "step-00000003" / "model.safetensors")
    assert "embedding.weight" in stored
    assert "head.weight" not in stored
    resumed = Training(tmp_path / "checkpoints", seed=1)
    resumed.checkpoints.load()
    assert resumed.model.head.weight is resumed.model.embedding.weight
    assert torch.equal(resumed.model.head.weight, stored["embedding.weight"])


def test_frozen_parameters_stay_out(tmp_path: Path) -> None:
    training = Training(tmp_path / "checkpoints")
    for name, parameter in training.model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    training.step()
    assert all("layers.1" in name for name in full_state_dict(training.model, trainable_only=True))
    training.save()
    resumed = Training(tmp_path / "checkpoints")
    for name, parameter in resumed.model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    resumed.checkpoints.load()
    resumed.assert_equal(training)


def test_training_goes_on_while_it_is_written(tmp_path: Path, saved: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes after `save` returned does not reach the file."""
    go, original = threading.Event(), fusionx.train.state.checkpoint.save_file
    reference = Training(tmp_path / "elsewhere")
    for _ in range(4):
        reference.step()

    def waiting(*arguments: Any) -> None:
        assert go.wait(30)
        original(*arguments)

    monkeypatch.setattr(fusionx.train.state.checkpoint, "save_file", waiting)
    saved.step()
    saved.checkpoints.save(saved.state)
    assert folders(tmp_path) == ["step-00000003"] or ".step-00000004.tmp" in folders(tmp_path)
    for _ in range(2):
        saved.step()
    saved.state.best_step = 6
    go.set()
    saved.writer.wait()
    resumed = Training(tmp_path / "checkpoints", seed=1)
    assert resumed.checkpoints.load() == TrainState(step=4)
    resumed.assert_equal(reference)


def test_the_last_ones_are_kept(tmp_path: Path, saved: Training) -> None:
    for _ in range(3):
        saved.step()
        saved.checkpoints.save(saved.state)  # waits for the one before
    with saved.writer:
        pass
    assert folders(tmp_path) == ["step-00000005", "step-00000006"]


def test_an_earlier_one_drops_what_came_after(tmp_path: Path, saved: Training) -> None:
    saved.step()
    saved.save()
    again = Training(tmp_path / "checkpoints")
    state = again.checkpoints.load(tmp_path / "checkpoints" / "step-00000003")
    assert state == TrainState(step=3)
    assert folders(tmp_path) == ["step-00000003"]
    with pytest.raises(DataError, match="no such checkpoint") as caught:
        again.checkpoints.load(tmp_path / "checkpoints" / "step-00000004")
    assert caught.value.details["file"].endswith("step-00000004/state.json")


def test_all_are_deleted(tmp_path: Path, saved: Training) -> None:
    saved.checkpoints.save(saved.state)
    saved.checkpoints.delete_all()
    assert not (tmp_path / "checkpoints").exists()


def test_another_job_is_refused_and_the_fields_are_named(tmp_path: Path, saved: Training) -> None:
    other = {**CONTENT, "seed": 1, "optimizer": {"learning_rate": 1e-4, "batch_size": 4}}
    with pytest.raises(DataError, match="another training") as caught:
        Training(tmp_path / "checkpoints", content=other).checkpoints.load()
    assert caught.value.details["field"] == "optimizer.learning_rate, seed"
    assert "seed: found 0, expected 1" in caught.value.details["found"]
    assert caught.value.details["file"].endswith("step-00000003")


def test_a_damaged_one_is_refused(tmp_path: Path, saved: Training) -> None:
    file = tmp_path / "checkpoints" / "step-00000003" / "model.optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="No checkpoint of a training is whole") as caught:
        Training(tmp_path / "checkpoints").checkpoints.load()
    assert caught.value.details["file"] == str(file)


@pytest.mark.parametrize("name", ["model.safetensors", "asn.optimizer.safetensors", "state.json"])
def test_a_damaged_one_is_passed_over(
    tmp_path: Path, saved: Training, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """But not where the user names it."""
    saved.step()
    saved.save()
    file = tmp_path / "checkpoints" / "step-00000004" / name
    file.write_bytes(file.read_bytes().replace(b"e", b"f", 1))
    with pytest.raises(DamageError) as caught:
        Training(tmp_path / "checkpoints").checkpoints.load(file.parent)
    assert caught.value.details["file"] == str(file)
    assert Training(tmp_path / "checkpoints").checkpoints.load() == TrainState(step=3)
    assert str(file) in capsys.readouterr().err
    assert folders(tmp_path) == ["step-00000003"]


def test_another_number_of_processes_is_said(
    tmp_path: Path, saved: Training, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.step()
    monkeypatch.setattr(fusionx.train.state.checkpoint, "_world_size", lambda: 4)
    saved.save()
    monkeypatch.undo()
    state = Training(tmp_path / "checkpoints").checkpoints.load()
    assert state == TrainState(step=4, world_size=4)
    assert "saved by 4 processes, and 1 go on" in capsys.readouterr().err


class _KilledError(BaseException):
    """Like a signal: no handler of the product may swallow it."""


@pytest.mark.parametrize("where", ["save_file", "write_sealed", "_delete"])
def test_killed_while_writing(tmp_path: Path, saved: Training, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    calls = iter(range(10))

    def dying(*arguments: Any) -> Any:
        if next(calls) == (where != "write_sealed"):
            raise _KilledError
        return original(*arguments)

    original = getattr(fusionx.train.state.checkpoint, where)
    if where == "_delete":
        saved.step()
        saved.save()
        next(calls)
    saved.step()
    monkeypatch.setattr(fusionx.train.state.checkpoint, where, dying)
    with pytest.raises(_KilledError):
        saved.save()
    monkeypatch.undo()
    last = finished_checkpoints(tmp_path / "checkpoints")[-1]
    assert last.name == ("step-00000005" if where == "_delete" else "step-00000003")
    resumed = Training(tmp_path / "checkpoints")
    resumed.state = resumed.checkpoints.load() or TrainState()
    resumed.step()
    resumed.save()
    assert not [name for name in folders(tmp_path) if name.startswith(".")]


KILLS = [
    ("fusionx.train.state.checkpoint", "save_file", 0, 3),
    ("fusionx.train.state.checkpoint", "save_file", 3, 3),
    ("os", "rename", 0, 3),
    ("fusionx.contract.files.atomic_folder", "flush_names", 1, 5),
    ("fusionx.train.state.checkpoint", "_delete", 0, 5),
    ("shutil", "rmtree", 3, 5),  # of the old one, after its mark
]
"""(module, function, which call of it ends the process, the step that is found then)."""


def die_everywhere(folder: Path, threads: int) -> None:
    """Saves once more for each of `KILLS`, in a process that ends there."""
    torch.set_num_threads(threads)  # the order of sums follows from it
    for number, (module, name, call, _) in enumerate(KILLS):
        if os.fork() == 0:
            training = Training(folder / str(number), keep=1)
            training.state = training.checkpoints.load() or TrainState()
            for _ in range(2):
                training.step()
            calls, original = iter(range(100)), getattr(sys.modules[module], name)

            def dying(
                *arguments: Any, calls: Any = calls, call: int = call, original: Any = original, **options: Any
            ) -> Any:
                if next(calls) == call:
                    os._exit(9)
                return original(*arguments, **options)

            setattr(sys.modules[module], name, dying)
            training.save()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 9, (module, name, call)


def test_killed_at_any_instant(tmp_path: Path, saved: Training) -> None:
    """A process that ends at once leaves the old checkpoint or the new one, and the next one goes on."""
    for number in range(len(KILLS)):
        shutil.copytree(tmp_path / "checkpoints", tmp_path / str(number))
    in_a_fork(die_everywhere, tmp_path, torch.get_num_threads())
    reference = Training(tmp_path / "elsewhere")
    for _ in range(5):
        reference.step()
    for number, (*_, survivor) in enumerate(KILLS):
        resumed = Training(tmp_path / str(number), keep=1)
        resumed.state = resumed.checkpoints.load() or TrainState()
        assert resumed.state.step == survivor
        while resumed.state.step < 5:
            resumed.step()
        resumed.save()
        resumed.assert_equal(reference)
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_is_reported_at_the_next_save(
    tmp_path: Path, saved: Training, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    saved.step()
    monkeypatch.setattr(fusionx.train.state.checkpoint, "save_file", full)
    saved.checkpoints.save(saved.state)
    with pytest.raises(DataError, match="cannot be written") as caught:
        saved.checkpoints.save(saved.state)
    assert caught.value.details["file"].endswith("step-00000004")
    assert "free some space" in caught.value.details["remedy"]
    assert finished_checkpoints(tmp_path / "checkpoints")[-1].name == "step-00000003"


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    training = Training(tmp_path / "file" / "checkpoints")
    with pytest.raises(DataError, match="cannot be written"):
        training.save()


def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "best"
    for text in ("old", "new"):
        with atomic_folder(final) as folder:
            (folder / "file").write_text(text)
    assert (final / "file").read_text() == "new"
    renames = iter(range(10))
    original = os.rename

    def dying(source: Path, target: Path) -> None:
        if next(renames) == 1:  # the old one is renamed away, the new one is not yet in place
            raise _KilledError
        original(source, target)

    monkeypatch.setattr(os, "rename", dying)
    with pytest.raises(_KilledError), atomic_folder(final) as folder:
        (folder / "file").write_text("newer")
    monkeypatch.undo()
    assert not final.exists()
    recover(final)
    assert (final / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_the_mark_is_readable_by_people(tmp_path: Path, saved: Training) -> None:
    mark = json.loads((tmp_path / "checkpoints" / "step-00000003" / "state.json").read_text())
    assert mark["config"] == CONTENT
    assert mark["state"]["step"] == 3
    assert sorted(mark["files"]) == [
        "asn.optimizer.safetensors",
        "asn.safetensors",
        "model.optimizer.safetensors",
        "model.safetensors",
    ]
