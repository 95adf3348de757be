"""Weight merging of candidates that share the target's architecture: the configs that mergekit takes.

mergekit is an extra (`pip install -e '.[merge]'`). It writes an ordinary model folder, which `eval.rivals` scores
beside the ensembles: docs/concepts.md.
"""

from __future__ import annotations

from typing import Any

import yaml

from contract.encoder import load_encoder
from contract.storage import join, write_bytes
from precompute.config import ModelConfig
from precompute.model import load_model_config

_DENSITY = 0.5
"""Share of each task vector that TIES keeps."""


def write_merges(models: list[ModelConfig], folder: str) -> None:
    """Writes `<method>.yaml` for every method that these candidates, the target first, can be merged by."""
    for method, content in merge_configs(mergeable(models)).items():
        write_bytes(join(folder, f"{method}.yaml"), yaml.safe_dump(content, sort_keys=False).encode())


def mergeable(models: list[ModelConfig]) -> list[ModelConfig]:
    """The target and the candidates whose weights have its names and shapes, and whose ids mean the same tokens."""
    target, *others = models
    return [target, *(model for model in others if _signature(model) == _signature(target))]


def merge_configs(models: list[ModelConfig]) -> dict[str, dict[str, Any]]:
    """Merge method -> mergekit config; empty for a single model.

    `linear`: the mean. `slerp`: half way between two. `ties` (Yadav et al. 2023, arXiv 2306.01708): what the others
    changed against the target, trimmed, with one sign elected per weight.
    """
    if len(models) < 2:
        return {}
    names = [model.path + (f"@{model.revision}" if model.revision else "") for model in models]
    target, others = names[0], names[1:]
    configs: dict[str, dict[str, Any]] = {
        "linear": {
            "merge_method": "linear",
            "models": [{"model": name, "parameters": {"weight": 1.0}} for name in names],
        },
        "ties": {
            "merge_method": "ties",
            "base_model": target,
            "models": [{"model": name, "parameters": {"weight": 1.0, "density": _DENSITY}} for name in others],
            "parameters": {"normalize": True},
        },
    }
    if len(names) == 2:
        configs["slerp"] = {
            "merge_method": "slerp",
            "base_model": target,
            "models": [{"model": name} for name in names],
            "parameters": {"t": 0.5},
        }
    return configs


def _signature(model: ModelConfig) -> tuple[str, dict[str, tuple[int, ...]]] | None:
    """Tokenizer fingerprint, and name and shape of every weight; None for a candidate without weights."""
    if model.kind == "fake":
        return None
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(load_model_config(model), trust_remote_code=model.trust_remote_code)
    shapes = {name: tuple(weight.shape) for name, weight in empty.named_parameters()}
    return load_encoder(model.path, model.revision).fingerprint, shapes
