"""Low-rank adapters (Hu et al. 2021) through peft, on plain or 4-bit weights (QLoRA, Dettmers et al. 2023).

The layers are replaced inside the model, whose class, trunk and head stay as they are. Only the adapters are trained;
an export holds plain weights with their product added.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fusionx.contract.errors import ConfigError
from fusionx.contract.extras import import_extra
from fusionx.train.config import LoraConfig

_FIELD = "train.optimizer.lora"
_ADAPTER = "default"


def quantization_options(config: LoraConfig | None, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` needs to load the frozen weights as the config wants them; empty for plain ones.

    Raises:
        ConfigError: 4-bit weights without a GPU, or without bitsandbytes.
    """
    if config is None or config.quantization == "none":
        return {}
    field = f"{_FIELD}.quantization"
    if device.type != "cuda":
        raise ConfigError(
            "Quantised weights need a GPU.",
            field=field,
            found=f"{config.quantization} on {device.type}",
            expected="none",
            remedy="train on a GPU, or leave the frozen weights as they are",
        )
    for package in ("bitsandbytes", "accelerate"):
        import_extra(package, "large", field)
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantization, "device_map": {"": device}}


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Gives the chosen layers adapters (fp32, initialised from torch's global generator) and freezes all the rest.

    The product of an adapter's two matrices is 0 at first, so that the model is still the one that was loaded.

    Experts that a model keeps fused in one tensor are no linear layers: "all-linear" leaves them as they are.

    Raises:
        ConfigError: peft is missing, no layer has such a name, or one is no linear layer of the trunk.
    """
    peft = import_extra("peft", "lora", _FIELD)
    linear = _linear_layers(model)
    # peft's own "all-linear" also takes fused experts and routers, whose adapters cannot be merged one by one.
    chosen = linear if config.modules == "all-linear" else config.modules
    settings = peft.LoraConfig(r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=chosen)
    try:
        peft.inject_adapter_in_model(settings, model, _ADAPTER)
    except ValueError as error:
        raise _wrong_modules(config, str(error).strip().splitlines()[0], linear) from None
    for name, _ in _adapted_layers(model):
        if name not in linear:
            raise _wrong_modules(config, name, linear)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@torch.no_grad()
def merged_state_dict(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The plain model's weights: W + (alpha / r) B A where a layer has adapters. The live model is not touched.

    Args:
        weights: `full_state_dict(model)`, with the adapters in it; empty on every rank but the first.

    Returns:
        Under the names that the model had without adapters; merged and dequantised ones in fp32.
    """
    if not weights:
        return {}
    merged = dict(weights)
    for name, weight in _dequantised(model):
        for packed in [key for key in merged if key.startswith(f"{name}.weight.")]:
            del merged[packed]
        merged[f"{name}.weight"] = weight
    for name, layer in _adapted_layers(model):
        first = merged.pop(f"{name}.lora_A.{_ADAPTER}.weight")  # [r, in]
        second = merged.pop(f"{name}.lora_B.{_ADAPTER}.weight")  # [out, r]
        change = layer.scaling[_ADAPTER] * (second @ first)
        base = merged[f"{name}.base_layer.weight"].float()
        merged[f"{name}.base_layer.weight"] = base + (change.T if layer.fan_in_fan_out else change)  # GPT-2's Conv1D
    return {name.replace(".base_layer.", "."): tensor for name, tensor in merged.items()}


def _linear_layers(model: nn.Module) -> list[str]:
    """Names of the trunk's linear layers; those of Conv1D (GPT-2) and of quantised weights are such, too.

    Not the head: an adapter would part it from an embedding that it is tied to, and the losses read its own weight.
    """
    from transformers.pytorch_utils import Conv1D

    whole: Any = model
    ends = (whole.get_input_embeddings(), whole.get_output_embeddings())
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and not any(layer is end for end in ends)
    ]


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Those that peft's layers stand in for. It need not be installed where there are none."""
    return ((name, layer) for name, layer in model.named_modules() if hasattr(layer, "lora_A"))


def _dequantised(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """fp32 on the CPU, of every 4-bit layer."""
    for name, layer in model.named_modules():
        weight: Any = getattr(layer, "weight", None)
        if getattr(weight, "quant_state", None) is not None:
            from bitsandbytes.functional import dequantize_4bit

            yield name, dequantize_4bit(weight.data, weight.quant_state).float().cpu()


def _wrong_modules(config: LoraConfig, found: str, linear: list[str]) -> ConfigError:
    names = sorted({name.rpartition(".")[2] for name in linear})
    return ConfigError(
        "The adapters cannot be placed.",
        field=f"{_FIELD}.modules",
        found=f"{config.modules}: {found}",
        expected=f"all-linear, or some of this model's linear layers: {', '.join(names)}",
        remedy=f"write modules: [{', '.join(names)}], or fewer of them; experts in one tensor take no adapters",
    )
