"""A training that is killed at random instants, again and again, ends exactly like one that was left alone."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from shard_builder import corpus_parts, make_job, write_set, write_tiny_model
from training_process import finish, start

from fusionx.train.loop.throughput import TIMED_FIELDS
from fusionx.train.state.result import read_log

CANDIDATES = ["target", "prose", "code"]
KILLS = 20


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    tokens, aligned = write_set(tmp_path / "shards", corpus_parts(model, CANDIDATES), CANDIDATES)
    changed = {"optimizer": {"epochs": 80}, "run": {"validate_every": 7, "checkpoint_every": 5, "log_every": 2}}
    jobs = [make_job(model, tokens, aligned, tmp_path / name, **changed) for name in ("alone", "killed")]
    finish(jobs[0])
    dice = random.Random(0)
    log, reached, seconds = tmp_path / "killed" / "log.jsonl", [0], 0.0
    for kill in range(KILLS):
        started = time.monotonic()
        (process,) = start(jobs[1])
        # Every fourth is killed before it gets further: while it starts, resumes, or makes its last steps again. The
        # others have gone some steps further than any before, so kills advance however slow the machine is; the
        # moment after may fall anywhere: in a step, a validation, an export, a checkpoint.
        if kill % 4 == 3:
            time.sleep(dice.uniform(0, seconds))
        else:
            goal = max(reached) + dice.randint(1, 12)
            while last_step(log) < goal and process.is_alive():
                time.sleep(0.002)
            seconds = time.monotonic() - started
            time.sleep(dice.uniform(0, seconds / 10))
        assert process.is_alive(), f"finished after {kill} kills; give it more epochs"
        process.kill()
        process.join()
        reached.append(last_step(log))
    assert len(set(reached)) > KILLS / 3
    finish(jobs[1])
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
    timed = {"seconds": 0, "files": {}, "checksum": ""}  # the log holds times, and the result the log's hash
    assert {**results[0], **timed} == {**results[1], **timed}


def last_step(log: Path) -> int:
    """0 before the first one. The process may be in the middle of a line."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)
