"""A causal language model as its files have it, read by whoever runs or trains one: whole and finite, or refused.

Transformers takes config.json at its word, fills what the weight files lack with random numbers, and loads NaN like any
other number. What is checked here costs a read of the files' heads, and of the weights a sum while they are in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fusionx.contract.errors import ConfigError, DamageError, DataError

_MOST = {
    "vocab_size": 1 << 31,
    "hidden_size": 1 << 31,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 1 << 31,
    "num_key_value_heads": 1 << 31,
}
"""Sizes are positive, and smaller. A model of a billion layers would take for ever to make, even without weights."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_AGAIN = "download or export the model again; its config.json and weights must be of one model"
_NAMED = 3


class StoredTensor(NamedTuple):
    """By the head of a safetensors file. dtype: as safetensors names it (F32, BF16, I8, ...)."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path, field: str | None = None) -> Iterator[StoredTensor]:
    """The tensors of a folder's weight files (model*.safetensors), told by their heads.

    Args:
        field: of the run's config, for errors.

    Raises:
        DamageError: a file is damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(file, framework="np") as weights:  # compares the file's length with its head, too
                for name in weights.keys():  # noqa: SIM118  # safe_open is no mapping
                    tensor = weights.get_slice(name)
                    yield StoredTensor(file, name, tensor.get_dtype(), tuple(tensor.get_shape()))
        except (OSError, SafetensorError) as error:
            raise DamageError(
                "A weight file is damaged or cut short.",
                file=file,
                field=field,
                found=error,
                remedy="download or export the model again",
            ) from None


def read_config(place: str, revision: str | None = None, *, field: str, trust_remote_code: bool = False) -> Any:
    """The model's `PretrainedConfig`, whose sizes are possible.

    Args:
        field: of the run's config, for errors.

    Raises:
        ConfigError: there is no config.json, or one that describes no model.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
        problem = _impossible(config)
    except Exception as error:  # OSError, ValueError, TypeError, hub errors, and a kind of its own for wrong types
        raise _unreadable(place, field, one_line(error)) from None
    if problem:
        raise _unreadable(place, field, problem)
    return config


def _unreadable(place: str, field: str, found: str) -> ConfigError:
    file = Path(place, "config.json")
    return ConfigError(
        "The config of a model cannot be used.",
        file=file if file.is_file() else place,
        field=field,
        found=found,
        expected="config.json of a causal language model, as save_pretrained() writes it",
        remedy=_AGAIN,
    )


def one_line(error: Exception) -> str:
    """What it says, without line breaks."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"


def _impossible(config: Any) -> str:
    """What in a config no model can have; transformers looks at types only."""
    text = config.get_text_config(decoder=True)
    names = config.architectures
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return f"architectures: {names!r:.80}, which is no list of names"
    for name, most in _MOST.items():
        value = getattr(text, name, None)
        if isinstance(value, int) and not 0 < value < most:
            return f"{name}: {value}, which no model can have"
    return ""


def check_weight_files(folder: Path, field: str) -> None:
    """What the heads of the weight files tell: that they are whole, of plain numbers, and as many as there are layers.

    Raises:
        DamageError: a file is damaged or cut short. DataError: the numbers are of a type that is no weight's, or the
            config states more layers than there are tensors.
    """
    stated = _stated(folder)
    count = 0
    for tensor in stored_tensors(folder, field):
        count += 1
        is_weight = tensor.name.endswith(".weight") and len(tensor.shape) > 1  # buffers are of any type
        if is_weight and tensor.dtype not in _FLOATS and "quantization_config" not in stated:
            raise DataError(
                "Weights are stored as numbers that are no weights.",
                file=tensor.file,
                field=field,
                found=f"{tensor.name}: {tensor.dtype}",
                expected=f"{', '.join(_FLOATS)}, or a quantization_config in config.json that says what they mean",
                remedy="export the model in bfloat16 or float32",
            )
    text = stated.get("text_config")
    layers = (text if isinstance(text, dict) else stated).get("num_hidden_layers")
    if isinstance(layers, int) and 0 < count < layers:
        raise DataError(
            "A model's config and weights do not belong together.",
            file=folder / "config.json",
            field=field,
            found=f"num_hidden_layers: {layers:,}, and {count:,} tensors in all",
            expected="a tensor or more for every layer",
            remedy=_AGAIN,
        )


def _stated(folder: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):  # whoever reads it as a config refuses it by name
        return {}
    return content if isinstance(content, dict) else {}


def load_causal_lm(place: str | Path, *, field: str, **options: Any) -> Any:
    """`AutoModelForCausalLM.from_pretrained` from safetensors, all of whose tensors were there and are finite.

    -inf may stand in a bias, by which heads rule ids out.

    Raises:
        ConfigError: as `read_config`. DataError: tensors are missing, of another shape or not finite, or a weight file
            is damaged. And whatever else transformers raises for a folder that it cannot read.
    """
    from transformers import AutoModelForCausalLM

    remote = bool(options.get("trust_remote_code"))
    read_config(str(place), options.get("revision"), field=field, trust_remote_code=remote)
    folder = Path(place)
    if folder.is_dir():
        check_weight_files(folder, field)
    load: Any = AutoModelForCausalLM.from_pretrained
    # What is of another shape is told by name below, not in a table.
    strict = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = load(place, **strict, **options)
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise DataError(
            "Weights are of another shape than the config says.",
            file=place,
            field=field,
            found=f"{name}: {list(stored)}",
            expected=f"{list(wanted)}, as config.json has it",
            remedy=_AGAIN,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise DataError(
            "Weights are missing; random numbers would stand for them.",
            file=place,
            field=field,
            found=f"no {', '.join(missing[:_NAMED])}{f' and {len(missing) - _NAMED} more' if missing[_NAMED:] else ''}",
            expected=f"every tensor of {type(model).__name__}, as config.json describes it",
            remedy=_AGAIN,
        )
    for name, tensor in model.named_parameters():
        if not _is_finite(name, tensor):
            raise DataError(
                "A model's weights are not finite.",
                file=place,
                field=field,
                found=f"NaN or infinity in {name}",
                expected="finite numbers",
                remedy="download or export the model again, from before its training went wrong",
            )
    return model


def _is_finite(name: str, tensor: Any) -> bool:
    if not tensor.is_floating_point() or tensor.element_size() < 2 or tensor.device.type == "meta":
        return True  # quantised, or still on the disk
    values = tensor.detach()
    if bool(values.sum().isfinite()):  # of finite numbers, unless it overflows; many times faster than asking each
        return True
    finite = values.isfinite()
    if name.endswith("bias"):
        finite |= values.isneginf()
    return bool(finite.all())
