"""A source as the stage sees it: any causal language model, split into its trunk and its own head.

The head runs over blocks of positions, so that the logits of a whole batch never exist, whatever the vocabulary. No
architecture is known by name: the head is the model's own forward pass with the trunk's result handed in, so that
whatever a model does to its logits (scaling, soft-capping, a bias) happens here too. Loading proves it on a probe.
Weights come from safetensors only.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusionx.contract.errors import ConfigError, FusionXError
from fusionx.contract.extras import check_extra
from fusionx.contract.models.causal_lm import load_causal_lm, one_line, read_config
from fusionx.contract.models.place import loadable
from fusionx.contract.packed_rows import packed_rows_found_by
from fusionx.contract.shapes import EXACT, Shapes, shapes_of
from fusionx.contract.weights import check_model_files
from fusionx.precompute.config import ModelConfig
from fusionx.precompute.logits.cpu_dtype import in_fast_dtype
from fusionx.precompute.logits.fake_model import fake_model

if TYPE_CHECKING:
    import torch

_BLOCKS = {"cpu": (1 << 20, 256), "cuda": (1 << 27, 1024)}
"""Logits held at once, and the least positions: fewer make slow matrix products, more leave the caches (fp32: 4 MB)."""
_PROBE_LENGTHS = (12, 5)


@dataclass(frozen=True)
class SourceModel:
    """A source on its device(s).

    Attributes:
        trunk: token ids int64 [B, T], padded on the right -> hidden states [B, T, H].
        head: hidden states [N, H] -> logits [N, V].
        head_size: V; more than the tokenizer's vocabulary where the head is padded, less where ids were added to it.
        by_rows: the head could not be parted from the trunk, which gives logits and takes one row at a time.
        device: where token ids go. head_device: where logits come out. shapes: what serves the device best.
    """

    trunk: Callable[[torch.Tensor], torch.Tensor]
    head: Callable[[torch.Tensor], torch.Tensor]
    head_size: int
    by_rows: bool
    device: torch.device
    head_device: torch.device
    embedding_size: int
    shapes: Shapes = EXACT

    @property
    def vocab_size(self) -> int:
        """Ids below this can be read and predicted."""
        return min(self.head_size, self.embedding_size)

    def logits(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[torch.Tensor]:
        """Logits [n, V] of the chosen positions of all batches, block after block in their order.

        Blocks have one size, whatever the batches': a short one would be a slow matrix product, and on an accelerator
        one more shape. Only the last is shorter.

        Args:
            batches: token ids int64 [B, T], padded on the right (a causal model never looks there; one row where
                `by_rows`), and positions int64 [n], ascending places in the flattened [B * T].
        """
        import torch

        values, least = _BLOCKS[self.head_device.type]
        size = max(least, values // self.head_size)
        waiting: list[torch.Tensor] = []
        for ids, positions in batches:
            hidden = self.trunk(ids.to(self.device)).flatten(0, 1)
            waiting.append(hidden[positions.to(hidden.device, non_blocking=True)])
            if sum(map(len, waiting)) >= size:
                *blocks, rest = torch.cat(waiting).split(size)
                waiting = [rest]
                if len(rest) == size:
                    blocks, waiting = [*blocks, rest], []
                for block in blocks:
                    yield self.head(block)
        last = torch.cat(waiting) if waiting else None
        if last is not None and len(last):
            padded = self.shapes.length(len(last), most=size)
            yield self.head(torch.nn.functional.pad(last, (0, 0, 0, padded - len(last))))[: len(last)]


def load_source(model: ModelConfig, vocab_size: int, device: torch.device, num_gpus: float = 0.0) -> SourceModel:
    """The source on `device`, or spread over `num_gpus` GPUs where that is more than one.

    `vocab_size` is the tokenizer's.

    Raises:
        ConfigError: it cannot be loaded, or it is no causal language model over this vocabulary.
    """
    if model.kind == "fake":
        trunk, head = fake_model(vocab_size, device, model.delay)
        return SourceModel(trunk, head, vocab_size, False, device, device, vocab_size, shapes_of(device.type))
    return split_model(model.id, load_model(model, device, num_gpus), vocab_size)


def split_model(name: str, model: Any, vocab_size: int) -> SourceModel:
    """Parts a causal language model into trunk and head, as far as it can be parted.

    Raises:
        ConfigError: the model looks ahead.
    """
    import torch

    embedding = model.get_input_embeddings().weight
    device, embedding_size = embedding.device, embedding.shape[0]
    ids = torch.arange(1, 1 + sum(_PROBE_LENGTHS), device=device) * 7 % min(vocab_size, embedding_size)
    rows = ids.split(list(_PROBE_LENGTHS))
    positions = torch.cat([row * max(_PROBE_LENGTHS) + torch.arange(size) for row, size in enumerate(_PROBE_LENGTHS)])
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    with torch.inference_mode():
        own = torch.cat([_whole_logits(model, row[None])[0] for row in rows])
        size, places = own.shape[-1], (device, own.device, embedding_size, shapes_of(device.type))
        try:
            parted = SourceModel(_trunk(model), _head(model, _output_type(model, padded)), size, False, *places)
            if _agrees(parted, [(padded, positions)], own):
                return parted
            why = "they give other logits than the model"
        except Exception as error:  # whatever a stranger's forward pass raises at a trunk that is none
            why = f"{type(error).__name__}: {error}"
        whole = SourceModel(lambda part: _whole_logits(model, part), lambda logits: logits, size, True, *places)
        alone = [(row, torch.arange(size)) for row, size in zip(padded.split(1), _PROBE_LENGTHS, strict=True)]
        if _agrees(whole, alone, own):
            message = f"[precompute/{name}] trunk and head cannot be parted ({why}); row by row, with whole logits"
            print(message, file=sys.stderr, flush=True)
            return whole
    raise ConfigError(
        "A source's prediction at a token depends on what follows it.",
        field=f"path of model '{name}'",
        found=type(model).__name__,
        expected="a causal language model",
        remedy="use a decoder-only language model",
    )


def _trunk(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def trunk(ids: torch.Tensor) -> torch.Tensor:
        _stretch_alibi(model.config, ids.shape[1])
        return _forward(model.base_model, ids).last_hidden_state

    return trunk


def _output_type(model: Any, ids: torch.Tensor) -> type:
    return type(_forward(model.base_model, ids))


def _whole_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    _stretch_alibi(model.config, ids.shape[1])
    return _forward(model, ids).logits


def _forward(module: Any, ids: torch.Tensor) -> Any:
    """Padding on the right is not masked: no real position sees it, and a mask would keep the fast kernels away."""
    with packed_rows_found_by(lambda position_ids: None):
        return module(input_ids=ids, use_cache=False)


def _head(model: Any, output: type) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model's own forward pass from the trunk's result on.

    A shallow copy of the model shares its weights; in place of its trunk it holds a stub that answers with the hidden
    states handed in, as an `output` like the trunk's own. The model itself is not touched.
    """
    import torch

    shell, stub = copy.copy(model), _Stub()
    vars(shell).pop("forward", None)  # accelerate's wrapper is bound to the original, trunk and all
    vars(shell)[model.base_model_prefix] = stub

    def head(hidden: torch.Tensor) -> torch.Tensor:
        stub.output = output(last_hidden_state=hidden[None])
        logits = _forward(shell, torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device)).logits[0]
        stub.output = None
        return logits

    return head


class _Stub:
    """Whatever a model calls as its trunk (`model(...)`, `model.decoder(...)`) gives `output`."""

    output: Any = None

    def __getattr__(self, name: str) -> _Stub:
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.output


def _agrees(source: SourceModel, batches: list[tuple[torch.Tensor, torch.Tensor]], own: torch.Tensor) -> bool:
    """Whether the batches give, in blocks, the logits [N, V] that the model gives row by row."""
    import torch

    found = torch.cat(list(source.logits(batches)))
    coarse = 0.05 if own.dtype in (torch.float16, torch.bfloat16) else 1e-3  # shapes round differently, no more
    finite = own.nan_to_num(0.0, 0.0, 0.0).abs().max()
    return torch.allclose(found, own, rtol=0.0, atol=float(coarse * finite), equal_nan=True)


def load_model_config(model: ModelConfig) -> Any:
    """The model's `PretrainedConfig`; loads no weights.

    Raises:
        ConfigError: the folder or hub id holds no model, or a config that describes none.
    """
    field = f"path of model '{model.id}'"
    return read_config(_place(model), model.revision, field=field, trust_remote_code=model.trust_remote_code)


def _place(model: ModelConfig) -> str:
    try:
        return loadable(model.path, model.revision)
    except ConfigError as error:
        raise ConfigError(error.problem, **error.details | {"field": f"path of model '{model.id}'"}) from None


def load_model(model: ModelConfig, device: torch.device, num_gpus: float = 0.0) -> torch.nn.Module:
    """The model in evaluation mode on `device`, or spread over the visible GPUs where `num_gpus` is more than one.

    Raises:
        ConfigError: there is no model, no causal language model, or no safetensors weights at that place, or what its
            settings ask for is not there (an attention kernel, a package, a GPU).
        DataError: weights are missing, damaged or not finite.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # a line per source in a log tells more than a bar per worker
    options: dict[str, Any] = {}
    if model.attention != "auto":
        options["attn_implementation"] = model.attention
    if model.quantization != "none":
        options |= {"quantization_config": _quantization(model, device), "device_map": {"": device}}
    if num_gpus > 1:
        check_extra("accelerate", "large", "precompute.num_gpus")
        options["device_map"] = "auto"
    place = _place(model)
    check_model_files(place)
    try:
        loaded = load_causal_lm(
            place,
            field=f"path of model '{model.id}'",
            revision=model.revision,
            dtype=model.dtype,
            trust_remote_code=model.trust_remote_code,
            **options,
        )
    except FusionXError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds for a damaged folder
        raise _not_loadable(model, error) from None
    if model.dtype == "auto" and device.type == "cpu":
        loaded = in_fast_dtype(model.id, loaded)
    if "device_map" not in options:
        loaded.to(device)
    made: torch.nn.Module = loaded.eval()
    return made


def _quantization(model: ModelConfig, device: torch.device) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    field = f"quantization of model '{model.id}'"
    if device.type != "cuda":
        raise ConfigError(
            "Quantised weights need a GPU.",
            field=field,
            found=f"{model.quantization} on {device.type}",
            expected="none",
            remedy="set precompute.device to cuda, or leave the weights as they are",
        )
    for package in ("bitsandbytes", "accelerate"):
        check_extra(package, "large", field)
    if model.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)


def choose_device(wanted: str) -> torch.device:
    import torch

    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def context_length(config: Any) -> int | None:
    """The longest input the model was built for, where its config states one and its positions end there."""
    config = config.get_text_config(decoder=True)
    if _has_alibi(config):
        return None
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def rotary_switch(config: Any) -> int | None:
    """The length beyond which the model turns all positions of a batch by other frequencies (LongRoPE), if any."""
    config = config.get_text_config(decoder=True)
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [found, *(value for value in found.values() if isinstance(value, dict))]  # some have one per layer type
    switches = {kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"}
    return next(iter(switches), None)


def _has_alibi(config: Any) -> bool:
    """Linear biases go on beyond the length seen in training."""
    attention = getattr(config, "attn_config", None)
    nested = attention.get("alibi") if isinstance(attention, dict) else getattr(attention, "alibi", False)
    return bool(getattr(config, "alibi", False) or nested)


def _stretch_alibi(config: Any, length: int) -> None:
    """MPT builds its biases for the stated length only, and fails beyond it; longer ones begin with the same values."""
    if _has_alibi(config) and getattr(config, "max_seq_len", length) < length:
        config.max_seq_len = length


def _not_loadable(model: ModelConfig, error: Exception) -> ConfigError:
    return ConfigError(
        f"The model '{model.id}' cannot be loaded.",
        file=model.path,
        field=f"path of model '{model.id}'",
        found=one_line(error),
        expected="a Hugging Face model folder or hub id with safetensors weights, or a GGUF file",
        remedy="check the path; for the demo's models run `fusionx demo-inputs configs/inputs/demo.yaml`",
    )
