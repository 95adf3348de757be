"""Trainings on a tiny model and shards, made once for all tests here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shard_builder import Parts, corpus_parts, make_job, write_set, write_tiny_model
from trainings import CANDIDATES, METHODS, Make

from fusionx.train.config import TrainJob
from fusionx.train.loop.trainer import run_job


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def parts(model: Path) -> Parts:
    return corpus_parts(model, CANDIDATES)


@pytest.fixture(scope="session")
def make(model: Path, parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A job on the module's shards: make(output, method, **changed)."""
    folder = tmp_path_factory.mktemp("shards")
    tokens, aligned = write_set(folder, parts, CANDIDATES)

    def job(output: Path, method: str = "fusionx-network", **changed: Any) -> TrainJob:
        return make_job(model, tokens, changed.pop("aligned", aligned), output, METHODS[method], **changed)

    return job


@pytest.fixture(scope="session")
def finished(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The output of an undisturbed run of a method, made once."""
    outputs: dict[str, Path] = {}

    def output(method: str) -> Path:
        if method not in outputs:
            outputs[method] = tmp_path_factory.mktemp("whole") / method
            run_job(make(outputs[method], method))
        return outputs[method]

    return output
