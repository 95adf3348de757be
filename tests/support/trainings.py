"""What tests of whole trainings share: the methods, one process, and when two trainings are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fusionx.train.config import PRESETS, MethodConfig, SelectionConfig, TrainJob
from fusionx.train.data.collate import Batch
from fusionx.train.distributed.collectives import World
from fusionx.train.loop.throughput import TIMED_FIELDS
from fusionx.train.state.result import read_log

CANDIDATES = ["target", "prose", "code"]
ALONE = World(0, 1, torch.device("cpu"))
STEPS = 10  # round(2.3 epochs x 13 chunks / 3)
METHODS: dict[str, str | MethodConfig] = {
    **{name: name for name in PRESETS},
    "sequence": MethodConfig(selection=SelectionConfig(granularity="sequence")),
    "gumbel": MethodConfig(selection=SelectionConfig(metric="gumbel")),
}
Make = Callable[..., TrainJob]


def untimed_log(output: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in TIMED_FIELDS} for line in read_log(output)]


def assert_same_training(left: Path, right: Path) -> None:
    """Weights, networks, log and result are equal to the last bit, times apart."""
    files = sorted(path.relative_to(left) for path in left.glob("*/*.safetensors"))
    assert files == sorted(path.relative_to(right) for path in right.glob("*/*.safetensors"))
    assert files
    for file in files:
        ours, theirs = load_file(left / file), load_file(right / file)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), (file, name)
    assert untimed_log(left) == untimed_log(right)
    results = [json.loads((output / "result.json").read_text()) for output in (left, right)]
    timed = {"seconds": 0, "files": {}, "checksum": ""}  # the log holds times, and the result the log's hash
    assert {**results[0], **timed} == {**results[1], **timed}


def assert_same_batch(left: Batch, right: Batch) -> None:
    for one, other in zip(left._replace(buffer=None), right._replace(buffer=None), strict=True):
        if isinstance(one, torch.Tensor):
            assert isinstance(other, torch.Tensor)
            assert_same_tensor(one, other)
        elif isinstance(one, tuple):
            for of_one, of_other in zip(one, other, strict=True):  # type: ignore[arg-type]
                assert_same_tensor(of_one, of_other)
        else:
            assert one == other


def assert_same_tensor(left: torch.Tensor, right: torch.Tensor) -> None:
    """The same numbers of the same kind; an unknown one, NaN, equals another."""
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
