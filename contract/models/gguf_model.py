"""Reads model and tokenizer out of a GGUF file with transformers, and compares what it made with what the file states.

Transformers leaves out in silence what it has no name for, and fills what a file does not say with the defaults of some
other model; so every tensor is counted, and every size and constant that the file states is looked up in the config.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionx.contract.errors import DataError
from fusionx.contract.extras import import_extra
from fusionx.contract.models.gguf_header import GgufHeader
from fusionx.contract.models.rope_factors import FACTORS, llama3_parameters
from fusionx.contract.models.tokenizer_proof import prove

_STATED = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
}
"""What a file states under its architecture -> the config's name of it, where the config knows that name at all."""
_RELATIVE = 1e-5
_REMEDY = "use the model's safetensors, or another version of transformers"


@dataclass(frozen=True)
class GgufModel:
    """A file's model in float32, its tokenizer, and what the file says."""

    model: Any
    tokenizer: Any
    header: GgufHeader

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face folder: each tensor in the narrowest type that holds its values exactly.

        The config asks for bfloat16 where the file is quantised, as models are published, and for the file's own type
        where it is not. Read again from the folder, the tokenizer is proven.
        """
        from transformers import AutoTokenizer

        own = self.model.state_dict()
        narrow = {tensor.data_ptr(): _narrowest(tensor) for tensor in own.values()}  # a tied head stays the embedding
        weights = {name: narrow[tensor.data_ptr()] for name, tensor in own.items()}
        self.model.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)
        config = folder / "config.json"
        content = json.loads(config.read_text(encoding="utf-8")) | {"dtype": run_dtype(self.header)}
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        prove(AutoTokenizer.from_pretrained(folder), self.header)


def run_dtype(header: GgufHeader) -> str:
    """The type that a model of this file runs in unless it is told another."""
    if header.quantised or "BF16" in header.kinds:
        return "bfloat16"
    return "float16" if "F16" in header.kinds else "float32"


def read_model(header: GgufHeader) -> GgufModel:
    """The file's model and tokenizer, compared with what the file states.

    Raises:
        ConfigError: a package of the extra `real` is missing.
        DataError: an architecture or tokenizer that transformers does not read, or one that it misread.
    """
    for package in ("gguf", "accelerate"):
        import_extra(package, "real", f"the GGUF file {header.path.name}")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    file = {"pretrained_model_name_or_path": str(header.path.parent), "gguf_file": header.path.name}
    config = _read(header, "config", lambda: AutoConfig.from_pretrained(**file))
    stretched = llama3_parameters(header, _rope(config), config.hidden_size // config.num_attention_heads)
    if stretched is not None:
        config.rope_parameters = stretched
    _refuse(header, "The config", [*_other_values(header, config), *_lost_rope(header, config)])
    tokenizer = _read(header, "tokenizer", lambda: AutoTokenizer.from_pretrained(**file))
    prove(tokenizer, header)
    # Without `dequantize` the weights stay packed, and such a model refuses to be saved.
    options: dict[str, Any] = {
        "quantization_config": GgufConfig(dequantize=True),
        "dtype": "float32",
        "output_loading_info": True,
    }
    model, info = _read(header, "model", lambda: AutoModelForCausalLM.from_pretrained(**file, config=config, **options))
    read_apart = () if stretched is None else (FACTORS,)
    _refuse(header, "The model", _other_tensors(header, model, info, read_apart))
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return GgufModel(model, tokenizer, header)


def _read(header: GgufHeader, what: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # ValueError, KeyError, NotImplementedError, numpy's and Rust's: for one cause each
        raise DataError(
            f"The {what} in a GGUF file cannot be read.",
            file=header.path,
            field=f"general.architecture {header.architecture}",
            found=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.200}",
            expected="an architecture and a tokenizer that transformers reads from GGUF",
            remedy=_REMEDY,
        ) from error


def _refuse(header: GgufHeader, what: str, problems: list[str]) -> None:
    if problems:
        raise DataError(
            f"{what} in a GGUF file was not read as the file states it.",
            file=header.path,
            found="; ".join(problems),
            remedy=_REMEDY,
        )


def _other_values(header: GgufHeader, config: Any) -> Iterator[str]:
    expected = {name: header.of_architecture(key) for key, name in _STATED.items()}
    expected["rope_theta"] = header.of_architecture("rope.freq_base")
    embedding = header.tensor("token_embd.weight")
    expected["vocab_size"] = None if embedding is None else embedding.shape[0]
    if header.of_architecture("nextn_predict_layers"):
        expected["num_hidden_layers"] = None  # the file counts the layers that predict further tokens, too
    for name, value in expected.items():
        found = _rope(config).get("rope_theta") if name == "rope_theta" else getattr(config, name, _ABSENT)
        if found is _ABSENT or isinstance(value, list | None):
            continue
        if found is None or abs(found - value) > _RELATIVE * abs(value):
            yield f"{name} {found}, stated {value}"


_ABSENT = object()


def _rope(config: Any) -> dict[str, Any]:
    """The rotary settings; of a model that has several, those of its layers with full attention."""
    found = getattr(config, "rope_parameters", None) or {}
    return found.get("full_attention", found) or {}


def _lost_rope(header: GgufHeader, config: Any) -> Iterator[str]:
    stated = header.of_architecture("rope.scaling.type")
    if stated not in (None, "none") and _rope(config).get("rope_type", "default") == "default":
        yield f"rope.scaling.type {stated} is lost"


def _other_tensors(header: GgufHeader, model: Any, info: dict[str, Any], read_apart: Collection[str]) -> list[str]:
    problems = [f"{kind}: {', '.join(map(str, sorted(map(str, names))[:3]))}" for kind, names in info.items() if names]
    own = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    read = sum(tensor.numel() for tensor in own.values())
    to_read = [tensor for tensor in header.tensors if tensor.name not in read_apart]
    stated = sum(tensor.values for tensor in to_read)
    if read != stated:
        odd = [tensor.name for tensor in to_read if not tensor.name.startswith(("blk.", "token_embd.", "output"))]
        problems.append(f"{read:,} weights of the file's {stated:,}" + (f"; it has {', '.join(odd)}" if odd else ""))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied != (header.tensor("output.weight") is None):
        problems.append(f"the head is {'the' if tied else 'not the'} embedding, unlike in the file")
    infinite = [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]
    if infinite:
        problems.append(f"{len(infinite)} tensors hold NaN or infinity ({infinite[0]})")
    return problems


def _narrowest(tensor: Any) -> Any:
    """The tensor in 16 bits where they hold its values exactly, else as it is."""
    for narrow in (tensor.bfloat16(), tensor.half()):
        if narrow.to(tensor.dtype).equal(tensor):
            return narrow
    return tensor
