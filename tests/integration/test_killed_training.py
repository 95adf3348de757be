"""A training that is killed at random instants, again and again, ends exactly like one that was left alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from shard_builder import corpus_parts, make_job, write_set, write_tiny_model

from train.config import TrainJob
from train.result import read_log
from train.throughput import TIMED_FIELDS

CANDIDATES = ["target", "prose", "code"]
KILLS = 20


def start(job: TrainJob) -> subprocess.Popen[str]:
    file = Path(job.output) / "job.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(job.model_dump(mode="json")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "train", str(file)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    tokens, aligned = write_set(tmp_path / "shards", corpus_parts(model, CANDIDATES), CANDIDATES)
    changed = {"optimizer": {"epochs": 400}, "run": {"validate_every": 7, "checkpoint_every": 5, "log_every": 2}}
    jobs = [make_job(model, tokens, aligned, tmp_path / name, **changed) for name in ("alone", "killed")]
    alone = start(jobs[0])
    assert alone.wait() == 0
    dice = random.Random(0)
    log, killed, steps = tmp_path / "killed" / "log.jsonl", 0, set()
    while killed < KILLS:
        size = log.stat().st_size if log.exists() else 0
        process = start(jobs[1])
        # Once it writes, it may be anywhere: in a step, a validation, an export, a checkpoint.
        while process.poll() is None and (log.stat().st_size if log.exists() else 0) == size:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 1))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        killed += 1
        steps.add(max((line["step"] for line in whole_lines(log)), default=0))
    assert killed == KILLS, f"finished after {killed} kills; give it more epochs"
    assert len(steps) > KILLS / 3
    assert start(jobs[1]).wait() == 0
    for which in ("last", "best"):
        for file in ("model.safetensors", "asn.safetensors"):
            ours, theirs = (load_file(tmp_path / name / which / file) for name in ("killed", "alone"))
            assert ours.keys() == theirs.keys()
            assert all(ours[name].equal(theirs[name]) for name in ours), (which, file)
    logs = [
        [{key: value for key, value in line.items() if key not in TIMED_FIELDS} for line in read_log(tmp_path / name)]
        for name in ("killed", "alone")
    ]
    assert logs[0] == logs[1]
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("killed", "alone")]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def whole_lines(log: Path) -> list[dict[str, int]]:
    """The killed process may have been in the middle of one."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
