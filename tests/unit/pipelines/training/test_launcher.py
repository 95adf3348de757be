"""Starting trainings: which GPUs each sees, and what their ends are taken for."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusionx.contract.errors import EXIT_INCOMPLETE, EXIT_STOPPED
from fusionx.pipelines.training.launcher import Launcher, _gpu_shares
from fusionx.train.config import PRESETS, OptimizerConfig, RunConfig, TrainJob


@pytest.mark.parametrize(
    ("gpus", "at_once", "visible", "shares"),
    [
        (0, 2, None, [None, None]),
        (4, 1, None, [["0", "1", "2", "3"]]),
        (5, 2, None, [["0", "1"], ["2", "3"]]),
        (2, 3, None, [["0"], ["1"], ["0"]]),
        (2, 3, "5,7", [["5"], ["7"], ["5"]]),
        (3, 2, "GPU-a,GPU-b,GPU-c", [["GPU-a"], ["GPU-b"]]),
    ],
)
def test_gpus_are_shared_out(
    gpus: int, at_once: int, visible: str | None, shares: list[list[str] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _gpu_shares(gpus, at_once) == shares


MARK = 'for argument; do case "$argument" in --stopped-mark=*) touch "${argument#*=}";; esac; done; '


@pytest.mark.parametrize(
    ("devices", "at_the_signal", "code"),
    [
        (1, "exit 75", EXIT_STOPPED),
        (1, "exit 1", EXIT_INCOMPLETE),
        (1, "kill -9 $$", -9),
        (1, "trap - TERM; kill -15 $$", EXIT_STOPPED),  # as if it did not listen yet
        (2, "exit 1", EXIT_INCOMPLETE),  # torchrun, whose training failed
        (2, f"{MARK} exit 1", EXIT_STOPPED),  # torchrun, whose training has saved
    ],
)
def test_a_failure_stays_one_though_a_stop_was_asked_for(
    devices: int, at_the_signal: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listens = tmp_path / "listens"
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\nended() {{ {at_the_signal}; }}\ntrap 'ended \"$@\"' TERM\n"
        f"touch {listens}\nwhile :; do sleep 0.02; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    job = TrainJob(
        method_name="ct",
        method=PRESETS["ct"],
        seed=0,
        optimizer=OptimizerConfig(),
        run=RunConfig(device="cpu", devices=devices),
        target="target",
        target_path="models/target",
        target_weights="0123",
        tokens="tokens",
        aligned={},
        inputs={},
        output=str(tmp_path / "out"),
    )
    launcher = Launcher(1, "cpu")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(launcher.run, job, False, None)
        while not listens.exists():
            assert not running.done(), running.result()
            time.sleep(0.01)
        launcher._stop()
        assert running.result(timeout=30) == code
    assert launcher.run(job, False, None) == EXIT_STOPPED  # none is begun any more
