"""Trainings and evaluations whose output is a bucket: they work in a copy on their machine, whichever that is."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import ForkedCommand
from object_store import Proxy, refusal

from fusionx.contract.files import storage

TRAINED = ("train.methods=[ct,fusionx]", "train.optimizer.epochs=4", "train.run.checkpoint_every=2")
EVALUATED = (*TRAINED, "eval.sources=false", "eval.rivals={}", "eval.tasks=[]")


@pytest.fixture(scope="module")
def trained(world: Any, local_run: Path) -> dict[str, str]:
    """The weights that trainings in a local folder make."""
    world.run(local_run, "train", *TRAINED)
    found = {file.relative_to(local_run).as_posix(): file for file in local_run.glob("train/**/*.safetensors")}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in found.items()}


@pytest.fixture
def filled(local_run: Path, bucket: str) -> str:
    """A run in a bucket with its data stages done."""
    for folder in ("chunks", "logits", "aligned"):
        for file in filter(Path.is_file, (local_run / folder).rglob("[!.]*")):
            storage.upload(file, f"{bucket}/run/{file.relative_to(local_run).as_posix()}")
    return f"{bucket}/run"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, str]]:
    """Makes this process, and by the variables that it gives others, one of several machines."""

    def be(name: str) -> dict[str, str]:
        monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / name))
        return {"HF_ASSETS_CACHE": str(tmp_path / name)}

    return be


def weights(output: str) -> dict[str, str]:
    names = [f"train/{name}" for name in storage.list_tree(f"{output}/train") if name.endswith(".safetensors")]
    return {name: hashlib.sha256(storage.read_bytes(f"{output}/{name}")).hexdigest() for name in names}


def test_a_run_ends_in_a_bucket_and_another_machine_finds_it_done(
    world: Any, filled: str, trained: dict[str, str], machine: Callable[[str], dict[str, str]]
) -> None:
    machine("one")
    world.run(filled, "train", *TRAINED)
    assert weights(filled) == trained
    said = world.here(filled, "eval", *EVALUATED)
    assert said.returncode == 0, said.stderr
    assert f"The model: {filled}/model" in said.stdout
    there = storage.list_tree(filled)
    assert {"report/report.html", "report/results.json", "model/model.safetensors", "model/sealed.json"} <= set(there)
    assert not [name for name in there if "checkpoints" in name or "/." in name]
    assert b"Evaluation" in storage.read_bytes(f"{filled}/train/ct/lr-0.001/seed-0/best/README.md")
    lines = {line.split()[0]: line for line in world.here(filled, "status", *EVALUATED).stdout.splitlines() if line}
    assert [" complete " in lines[stage] for stage in ("train", "eval")] == [True, True], lines

    shown = json.loads(world.here(filled, "inspect shard --json", *TRAINED).stdout)
    weights_of = [opinion["weight"] for position in shown["positions"] for opinion in position["opinions"]]
    assert shown["method"] == "fusionx"
    assert weights_of
    assert all(0 <= weight <= 1 for weight in weights_of)

    machine("two")
    world.run(filled, "train", *TRAINED)
    again = world.here(filled, "eval", *EVALUATED)
    assert (again.returncode, "[eval]" in again.stderr) == (0, False), "nothing is evaluated again"
    assert weights(filled) == trained
    assert set(storage.list_tree(filled)) == set(there)


@pytest.mark.slow
def test_a_training_that_loses_its_machine_goes_on_on_another_one(
    world: Any,
    filled: str,
    trained: dict[str, str],
    machine: Callable[[str], dict[str, str]],
) -> None:
    words = world.command(filled, "train", *TRAINED, "train.jobs=1")
    killed = ForkedCommand(*words, folder=world.root, environment=machine("lost"))
    deadline = time.monotonic() + 120
    while not [name for name in storage.list_tree(f"{filled}/train") if name.endswith("state.json")]:
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    marks = sorted(name for name in storage.list_tree(f"{filled}/train") if name.endswith("state.json"))
    newest = dict(mark.removesuffix("/state.json").split("/checkpoints/step-") for mark in marks)
    machine("new")
    found = world.cli(filled, "train", *TRAINED)
    assert found.returncode == 0, found.stderr
    for training, step in newest.items():
        assert f"[train/{training}] resumed at step {int(step)} of" in found.stderr, found.stderr
    assert weights(filled) == trained
    assert not [name for name in storage.list_tree(filled) if "checkpoints" in name]


def test_what_a_store_does_not_take_stays_on_the_machine_and_is_sent_by_the_next_call(
    world: Any,
    filled: str,
    store: Proxy,
    trained: dict[str, str],
    machine: Callable[[str], dict[str, str]],
) -> None:
    machine("one")
    store.answer("/train/", refusal("403 Forbidden", "ExpiredToken"), skip=2)
    done = world.here(filled, "train", *TRAINED)
    assert done.returncode == 1, done.stderr
    assert "AWS_ACCESS_KEY_ID" in done.stderr
    assert "Traceback" not in done.stderr
    store.forward()
    assert not [name for name in storage.list_tree(f"{filled}/train") if name.endswith("result.json")]
    found = world.cli(filled, "train", *TRAINED)
    assert (found.returncode, "step" in found.stderr) == (0, False), "no training is carried out again"
    assert weights(filled) == trained


def test_trainings_of_several_machines_and_studies_say_that_they_need_a_disk(
    world: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    done = world.here(f"{bucket}/run", "train")
    assert done.returncode == 2, done.stderr
    for word in (f"{bucket}/run", "local folder", "torchrun"):
        assert word in done.stderr
