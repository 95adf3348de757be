"""Whether a model can be a source, told by its config and the heads of its weight files; loads no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusionx.contract.errors import ConfigError
from fusionx.contract.models.causal_lm import check_weight_files
from fusionx.contract.models.place import loadable
from fusionx.precompute.config import ModelConfig
from fusionx.precompute.logits.source_model import load_model_config


def check_kind(model: ModelConfig) -> None:
    """Refuses what is no causal language model with safetensors weights.

    Raises:
        ConfigError: there is no such model, it is of another kind, or its weights are of another format.
        DataError: a weight file is damaged or cut short, or holds what is no weights, or fewer than the config states.
    """
    config = load_model_config(model)
    own_code = model.trust_remote_code and bool(getattr(config, "auto_map", None))
    why_not = "" if own_code else why_not_causal(config)
    if why_not:
        raise ConfigError(
            "A model cannot be asked for the next token.",
            file=model.path,
            field=f"path of model '{model.id}'",
            found=why_not,
            expected="a causal language model with its head, such as LlamaForCausalLM",
            remedy="name another model; `fusionx inspect model PATH` says what one is",
        )
    place = loadable(model.path, model.revision)
    if Path(place).is_dir():
        _check_weight_files(model, Path(place))


def why_not_causal(config: Any) -> str:
    """Why a model with this config is no causal language model; empty where it may be one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder with a decoder, not a causal language model"
    causal = {name.lower() for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}  # old files write LLaMAForCausalLM
    if config.architectures and not {name.lower() for name in config.architectures} & causal:
        return f"its weights are those of {config.architectures[0]}, which is no causal language model"
    return ""


def _check_weight_files(model: ModelConfig, folder: Path) -> None:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        others = sorted(
            file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".safetensors")
        )
        raise ConfigError(
            "A model has no safetensors weights.",
            file=model.path,
            field=f"path of model '{model.id}'",
            found=", ".join(others[:4]) or "no weights",
            expected="model.safetensors, or model-00001-of-....safetensors",
            remedy="pickled weights are never read: save it anew with save_pretrained, or take a safetensors revision",
        )
    check_weight_files(folder, f"path of model '{model.id}'")
