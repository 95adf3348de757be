"""Loading a source as its folder or the hub has it: any causal language model, weights from safetensors only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contract.errors import ConfigError
from precompute.config import ModelConfig

if TYPE_CHECKING:
    import torch


def load_model_config(model: ModelConfig) -> Any:
    """The model's `PretrainedConfig`; loads no weights.

    Raises:
        ConfigError: the folder or hub id holds no model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _not_loadable(model, error) from None


def load_model(model: ModelConfig, device: torch.device) -> torch.nn.Module:
    """The model in evaluation mode on `device`.

    Raises:
        ConfigError: there is no model, no causal language model, or no safetensors weights at that place.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # a line per source in a log tells more than a bar per worker
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            model.path,
            revision=model.revision,
            dtype="auto" if model.dtype == "auto" else model.dtype,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise _not_loadable(model, error) from None
    loaded.to(device)  # type: ignore[arg-type]  # transformers' stub hides Module.to
    return loaded.eval()


def choose_device(wanted: str) -> torch.device:
    import torch

    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def context_length(config: Any) -> int | None:
    """The longest input the model was built for, where its config states one."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def _not_loadable(model: ModelConfig, error: Exception) -> ConfigError:
    return ConfigError(
        f"The model '{model.id}' cannot be loaded.",
        file=model.path,
        field=f"path of model '{model.id}'",
        found=(str(error).strip() or type(error).__name__).splitlines()[0],
        expected="a Hugging Face model folder or hub id with safetensors weights",
        remedy="check the path; for the demo's models run `fusionx demo-inputs configs/inputs/demo.yaml`",
    )
