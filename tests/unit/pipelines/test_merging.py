"""Which candidates can be merged, and the configs that mergekit would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipelines.merging import merge_configs, mergeable, write_merges
from precompute.config import ModelConfig


def test_only_siblings_of_the_target_are_merged(tmp_path: Path, make_model: Any) -> None:
    """Not another architecture, and not another vocabulary."""
    make_model(tmp_path / "target", "llama", 320, seed=0, bos=True)
    make_model(tmp_path / "sibling", "llama", 320, seed=1, bos=True)
    make_model(tmp_path / "other", "gpt_neox", 320, seed=2, bos=True)
    make_model(tmp_path / "larger", "llama", 330, seed=3, bos=True)
    names = ["target", "other", "sibling", "larger"]
    models = [ModelConfig(id=name, path=str(tmp_path / name)) for name in names]
    assert [model.id for model in mergeable(models)] == ["target", "sibling"]
    write_merges(models, str(tmp_path / "merge"))
    assert {path.name for path in (tmp_path / "merge").iterdir()} == {"linear.yaml", "slerp.yaml", "ties.yaml"}
    ties = yaml.safe_load((tmp_path / "merge" / "ties.yaml").read_text())
    assert ties["base_model"] == str(tmp_path / "target")
    assert [item["model"] for item in ties["models"]] == [str(tmp_path / "sibling")]
    write_merges([models[0], models[1]], str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_slerp_takes_two_models_and_a_revision_is_part_of_the_name() -> None:
    models = [ModelConfig(id=name, path=f"hub/{name}", revision=f"r{name}") for name in "abc"]
    assert merge_configs(models[:1]) == {}
    assert "slerp" not in merge_configs(models)
    assert [item["model"] for item in merge_configs(models[:2])["slerp"]["models"]] == ["hub/a@ra", "hub/b@rb"]
