"""The jobs of a run's trainings: what each reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shard_builder import random_parts, write_aligned, write_tokens

from fusionx.contract.config import load_config
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.training.training_jobs import planned_jobs, tuning_jobs


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A run whose data stages are finished, but for the logits."""
    layout, parts = Layout(str(tmp_path)), random_parts([2], ["target", "prose"])
    write_tokens(Path(layout.tokens("target")), parts)
    for name in ("target", "prose"):
        write_aligned(Path(layout.aligned("target", "walk", name)), parts, name)
    return layout


@pytest.fixture
def config(root: Path, tmp_path: Path) -> FusionConfig:
    """The demo's, with one source and a target that is there."""
    (tmp_path / "model").mkdir()
    config = load_config(FusionConfig, root / "configs" / "demo.yaml")
    models: dict[str, Any] = {
        name: config.target.model_copy(update={"id": name, "path": str(tmp_path / "model")})
        for name in ("target", "prose")
    }
    optimizer = config.train.optimizer.model_copy(update={"document_end": "none"})  # the folder has no tokenizer
    train = config.train.model_copy(update={"optimizer": optimizer})
    return config.model_copy(update={"target": models["target"], "sources": [models["prose"]], "train": train})


def test_named_rates_and_passes_are_not_searched(config: FusionConfig, layout: Layout) -> None:
    own = {"methods": ["ct", "fusionx"], "overrides": {"fusionx": {"learning_rate": 1e-4, "epochs": 9}}}
    named = config.model_copy(update={"train": config.train.model_copy(update={**own, "tune": []})})
    ct, fused = planned_jobs(named, layout)
    common = config.train.optimizer
    assert (ct.optimizer.learning_rate, ct.optimizer.epochs) == (common.learning_rate, common.epochs)
    assert fused.optimizer == common.model_copy(update={"learning_rate": 1e-4, "epochs": 9})
    searched = named.model_copy(update={"train": named.train.model_copy(update={"tune": [1e-3, 2e-3]})})
    assert [(job.method_name, job.optimizer.learning_rate) for job in tuning_jobs(searched, layout)] == [
        ("ct", 1e-3),
        ("ct", 2e-3),
    ]
