"""`fusionx train` as a user starts it: alone, with torchrun's processes, as the tasks of an srun, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.errors import EXIT_STOPPED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def aligned(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run whose data stages are done."""
    root = tmp_path_factory.mktemp("train-command")
    config = yaml.safe_load(world.config.read_text())
    config["output"] = str(root / "out")
    config["train"] = {
        "methods": ["ct", "fusionx"],
        "optimizer": {"learning_rate": 1e-3, "batch_size": 2, "epochs": 1},
        "run": {"device": "cpu", "validate_every": 10, "log_every": 1, "checkpoint_every": 5, "threads": 1},
    }
    file = root / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    for stage in ("chunk", "precompute", "align"):
        assert start(file, stage).wait() == 0
    return file


def start(file: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.cli", arguments[0], str(file), *arguments[1:]]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def results(output: Path) -> dict[str, dict[str, Any]]:
    return {path.parts[-4]: json.loads(path.read_text()) for path in output.glob("train/*/*/*/result.json")}


def at(file: Path, output: Path) -> Path:
    """The same run with another output for its trainings: data stages are shared."""
    config = yaml.safe_load(file.read_text())
    output.mkdir()
    for stage in ("chunks", "logits", "aligned"):
        (output / stage).symlink_to(Path(config["output"]) / stage)
    moved = output / "run.yaml"
    moved.write_text(yaml.safe_dump({**config, "output": str(output)}))
    return moved


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_alone_with_torchrun_and_as_tasks_of_an_srun(aligned: Path, tmp_path: Path) -> None:
    """All give the same trainings; a finished one is only read."""
    files = {name: at(aligned, tmp_path / name) for name in ("alone", "torchrun", "srun")}
    assert start(files["alone"], "train").wait() == 0
    assert start(files["torchrun"], "train", "--set", "train.run.devices=2").wait() == 0
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    tasks = [
        start(files["srun"], "train", SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **slurm) for rank in range(2)
    ]
    said = [task.communicate(timeout=300)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    found = {name: results(tmp_path / name) for name in files}
    for name in ("torchrun", "srun"):
        assert sorted(found[name]) == ["ct", "fusionx"]
        for method, result in found[name].items():
            assert result["job"] == found["alone"][method]["job"]
            assert result["last_bits_per_byte"] == pytest.approx(found["alone"][method]["last_bits_per_byte"], rel=1e-3)
    again = start(files["alone"], "train")
    _, printed = again.communicate()
    assert again.returncode == 0
    assert "step" not in printed


def test_interrupted_and_called_again(aligned: Path, tmp_path: Path) -> None:
    """SIGTERM to the command reaches its training, which saves; the command says so and goes on the next time."""
    file = at(aligned, tmp_path / "out")
    longer = ("--set", "train.optimizer.epochs=300", "--set", "train.methods=[fusionx]")
    command = start(file, "train", *longer)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("train/*/*/*/checkpoints/step-*/state.json")):
        assert time.monotonic() < deadline
        assert command.poll() is None
        time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    _, printed = command.communicate(timeout=60)
    assert command.returncode == EXIT_STOPPED, printed
    assert "told to stop" in printed
    assert "run the same command again" in printed
    checkpoints = sorted((tmp_path / "out").glob("train/*/*/*/checkpoints/step-*"))
    foreign = start(file, "train", *longer, "--resume", str(tmp_path / "elsewhere"))
    assert foreign.wait() == 2
    command = start(file, "train", *longer, "--resume", str(checkpoints[0]))
    time.sleep(0.1)
    step = int(checkpoints[0].name.removeprefix("step-"))
    lines: list[str] = []
    assert command.stderr is not None
    for line in command.stderr:
        lines.append(line)
        if "resumed at step" in line:
            break
    command.kill()
    assert f"resumed at step {step} of" in "".join(lines)
