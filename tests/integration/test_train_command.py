"""`fusionx train` as a user starts it: alone, with torchrun's processes, as the tasks of an srun, and interrupted."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import ForkedCommand
from training_process import free_port

from fusionx.contract.errors import EXIT_STOPPED
from fusionx.contract.files.sealed import write_sealed


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
        type(world)(root).run(root / "out", stage)
    return file


def start(file: Path, *arguments: str, **environment: str) -> ForkedCommand:
    return ForkedCommand(arguments[0], str(file), *arguments[1:], folder=file.parent, environment=environment)


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


def under_two_agents(file: Path, *arguments: str) -> None:
    """As docs/cluster.md has it for two machines; both agents are on this one."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    command = [*agent, "-m", "fusionx", "train", str(file), *arguments]
    agents = [
        subprocess.Popen(command, cwd=file.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        said = [each.communicate(timeout=600)[1] for each in agents]
    finally:
        for each in agents:
            each.kill()
    assert [each.returncode for each in agents] == [0, 0], said
    assert sorted("[train/fusionx" in text for text in said) == [False, True], "one process of all speaks"


def test_alone_with_torchrun_and_as_tasks_of_an_srun(aligned: Path, tmp_path: Path) -> None:
    """All give the same trainings; a finished one is only read."""
    files = {name: at(aligned, tmp_path / name) for name in ("alone", "torchrun", "agents", "srun")}
    only = ("--set", "train.methods=[fusionx]")
    assert start(files["alone"], "train").wait() == 0
    assert start(files["torchrun"], "train", "--set", "train.run.devices=2", *only).wait() == 0
    under_two_agents(files["agents"], *only)
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    tasks = [
        start(files["srun"], "train", SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **slurm) for rank in range(2)
    ]
    said = [task.communicate(timeout=300)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    found = {name: results(tmp_path / name) for name in files}
    expected = {"torchrun": ["fusionx"], "agents": ["fusionx"], "srun": ["ct", "fusionx"]}  # the last in two meetings
    for name, methods in expected.items():
        assert sorted(found[name]) == methods
        for method, result in found[name].items():
            assert result["job"] == found["alone"][method]["job"]
            assert result["last_bits_per_byte"] == pytest.approx(found["alone"][method]["last_bits_per_byte"], rel=1e-3)
    again = start(files["alone"], "train")
    _, printed = again.communicate()
    assert again.returncode == 0
    assert "step" not in printed


def test_a_port_that_is_taken_is_named(aligned: Path, tmp_path: Path) -> None:
    """By the process that was to serve there."""
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        slurm = {"SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        first = start(at(aligned, tmp_path / "out"), "train", SLURM_PROCID="0", SLURM_LOCALID="0", **slurm)
        _, said = first.communicate(timeout=60)
    assert first.returncode == 2
    assert "MASTER_PORT" in said
    assert port in said


def first_checkpoint(command: ForkedCommand, output: Path) -> Path:
    deadline = time.monotonic() + 120
    while not (marks := sorted(output.glob("train/*/*/*/checkpoints/step-*/state.json"))):
        assert time.monotonic() < deadline
        assert command.poll() is None
        time.sleep(0.05)
    return marks[0].parent


def test_interrupted_killed_and_called_again(aligned: Path, tmp_path: Path) -> None:
    """A stop signal reaches the training, which saves; the command says so and goes on the next time. A killed command
    takes its training with it, which saves as well; who calls again at once waits for it."""
    output = tmp_path / "out"
    file = at(aligned, output)
    longer = ("--set", "train.optimizer.epochs=300", "--set", "train.methods=[fusionx]")
    command = start(file, "train", *longer)
    checkpoint = first_checkpoint(command, output)
    command.send_signal(signal.SIGTERM)
    _, printed = command.communicate(timeout=60)
    assert command.returncode == EXIT_STOPPED, printed
    assert "stopped by a signal" in printed
    assert "run the same command again" in printed
    checkpoint = sorted(checkpoint.parent.glob("step-*"))[0]
    (output / "train" / "elsewhere").mkdir()
    for foreign in (output / "train" / "elsewhere", checkpoint.parent, checkpoint.with_name("step-99999999")):
        refused = start(file, "train", *longer, "--resume", str(foreign))
        _, printed = refused.communicate()
        assert refused.returncode == 2, printed
        assert "checkpoints/step-" in printed
    command = start(file, "train", *longer, "--resume", str(checkpoint))
    said = until(command, "resumed at step")
    assert f"resumed at step {int(checkpoint.name.removeprefix('step-'))} of" in said
    command.kill()
    again = start(file, "train", *longer)
    assert "its checkpoint is written" in until(command, "its checkpoint is written")
    assert "resumed at step" in until(again, "resumed at step")
    again.send_signal(signal.SIGTERM)
    _, printed = again.communicate(timeout=60)
    assert again.returncode == EXIT_STOPPED, printed


def until(command: ForkedCommand, words: str) -> str:
    """What is printed up to the line with `words`, or all of it."""
    lines = []
    for line in command.stderr:
        lines.append(line)
        if words in line:
            break
    return "".join(lines)


def test_torchruns_training_stops_as_one_alone_does(aligned: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    longer = ("--set", "train.optimizer.epochs=300", "--set", "train.methods=[ct]", "--set", "train.run.devices=2")
    command = start(at(aligned, output), "train", *longer)
    first_checkpoint(command, output)
    command.send_signal(signal.SIGTERM)
    _, printed = command.communicate(timeout=60)
    assert command.returncode == EXIT_STOPPED, printed


def test_torchruns_training_ends_with_a_command_that_is_killed(aligned: Path, tmp_path: Path) -> None:
    """The command's stderr closes when the last of torchrun's processes has ended."""
    output = tmp_path / "out"
    longer = ("--set", "train.optimizer.epochs=300", "--set", "train.methods=[ct]", "--set", "train.run.devices=2")
    command = start(at(aligned, output), "train", *longer)
    first_checkpoint(command, output)
    command.kill()
    _, printed = command.communicate(timeout=60)
    assert "its checkpoint is written" in printed


def test_a_finished_training_is_not_resumed(aligned: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    file = at(aligned, output)
    command = start(file, "train", "--set", "train.methods=[ct]")
    checkpoint = first_checkpoint(command, output)
    assert command.wait() == 0
    checkpoint.mkdir(parents=True)
    write_sealed(checkpoint / "state.json", {})
    refused = start(file, "train", "--set", "train.methods=[ct]", "--resume", str(checkpoint))
    _, printed = refused.communicate()
    assert refused.returncode == 2
    assert "is finished" in printed
