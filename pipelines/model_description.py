"""What a model is and whether it can be source or target, told from config, headers and tokenizer; loads no weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from fusionx.contract.errors import ConfigError, FusionXError
from fusionx.contract.models.causal_lm import check_weight_files, one_line, read_config, stored_tensors
from fusionx.contract.models.gguf_folder import said_kinds
from fusionx.contract.models.gguf_header import GgufHeader, read_header
from fusionx.contract.models.gguf_model import run_dtype
from fusionx.contract.models.licence import licence
from fusionx.contract.models.place import gguf_file, loadable
from fusionx.contract.models.tokenizer_proof import adds
from fusionx.contract.tokens.tokenizer import ROLES, adds_bos, load_tokenizer
from fusionx.eval.report.tables.cells import bytes_text
from fusionx.precompute.logits.source_kind import why_not_causal
from fusionx.precompute.logits.source_model import context_length

_TRAIN_BYTES = 16
_RUN_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Verdict:
    """Whether it can be that, and why (not)."""

    possible: bool
    reason: str = ""

    def __str__(self) -> str:
        return ("yes" if self.possible else "no") + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Tokens:
    """The tokenizer. special: by role, the token and its id. bos_added, eos_added: by the tokenizer, to every text."""

    size: int
    special: dict[str, str]
    bos_added: bool
    eos_added: bool
    chat_template: bool


@dataclass(frozen=True)
class ModelDescription:
    """None where it cannot be told.

    Attributes:
        stored: values by the type that the weights are stored in. dtype: what it runs in unless a config says other.
        head: rows of the output layer. tied: whether they are the embedding's.
        run_bytes: parameters x bytes of `dtype`. train_bytes: parameters x 16 (fp32 weights, gradients, two moments).
    """

    path: str
    kind: str
    architecture: str
    layers: int | None
    hidden_size: int | None
    parameters: int | None
    stored: dict[str, int]
    dtype: str
    context: int | None
    tokens: Tokens | None
    head: int | None
    tied: bool | None
    licence: str | None
    source: Verdict
    target: Verdict

    @property
    def run_bytes(self) -> int | None:
        return self.parameters and self.parameters * _RUN_BYTES.get(self.dtype, 4)

    @property
    def train_bytes(self) -> int | None:
        return self.parameters and self.parameters * _TRAIN_BYTES

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "run_bytes": self.run_bytes, "train_bytes": self.train_bytes}, indent=1)

    def table(self) -> str:
        return "\n".join(f"{name:<17} {value}" for name, value in self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "model", f"{self.path} ({self.kind})"
        size = f"{_or_unknown(self.layers)} layers of {_or_unknown(self.hidden_size)}"
        yield "architecture", f"{self.architecture}, {size}"
        stored = f", stored as {said_kinds(self.stored)}" if self.stored else ""
        yield "parameters", f"{_or_unknown(self.parameters)}{stored}; runs in {self.dtype}"
        yield "context", "no limit stated" if self.context is None else f"{self.context:,} tokens"
        tied = {True: ", the embedding's own", False: ", apart from the embedding", None: ""}[self.tied]
        known = "unknown" if self.tokens is None else f"{self.tokens.size:,} tokens"
        yield "vocabulary", f"{known}; head of {_or_unknown(self.head)} rows{tied}"
        if self.tokens is not None:
            yield (
                "special tokens",
                ", ".join(f"{role} {token}" for role, token in self.tokens.special.items()) or "none",
            )
            added = {"BOS": self.tokens.bos_added, "EOS": self.tokens.eos_added}
            names = [name for name, is_added in added.items() if is_added]
            yield "added to a text", f"{' and '.join(names) or 'nothing'}, by the tokenizer"
            yield "chat template", "yes" if self.tokens.chat_template else "no"
        yield "licence", self.licence or "not stated"
        if self.parameters is not None:
            run = f"parameters x {_RUN_BYTES.get(self.dtype, 4)} bytes ({self.dtype})"
            train = f"parameters x {_TRAIN_BYTES} bytes (fp32 weights, gradients, AdamW's two moments)"
            yield "memory to run", f"{bytes_text(self.run_bytes or 0)}: {run}, and activations"
            yield "memory to train", f"{bytes_text(self.train_bytes or 0)}: {train}, and activations"
        yield "as a source", str(self.source)
        yield "as a target", str(self.target)


def describe_model(path: str, revision: str | None = None, tokenizer: bool = True) -> ModelDescription:
    """Describes a model folder, hub id or GGUF file; a folder's tokenizer takes seconds, and is left out on demand.

    Raises:
        ConfigError: there is no model at that place, or its config describes none.
        DataError: a file of weights is damaged; a GGUF file is one part of several; a folder's weights are none, or
            fewer than its config states.
    """
    file = gguf_file(path, revision)
    if file is not None:
        return _of_gguf(path, read_header(file))
    place = loadable(path, revision)
    config = _config(place, revision)
    tokens, no_tokens = _tokens(place, revision) if tokenizer else (None, "")
    empty, no_model = _empty_model(config)
    if Path(place).is_dir() and not no_model:
        check_weight_files(Path(place), "PATH")
    stored = _stored(place, revision)
    text = config.get_text_config(decoder=True)
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    found = ModelDescription(
        path=path,
        kind="folder" if Path(place).is_dir() else "hub id",
        architecture=(config.architectures or [config.model_type])[0],
        layers=getattr(text, "num_hidden_layers", None),
        hidden_size=getattr(text, "hidden_size", None),
        parameters=sum(stored.values()) or (sum(p.numel() for p in empty.parameters()) if empty is not None else None),
        stored=stored,
        dtype=dtype,
        context=context_length(config),
        tokens=tokens,
        head=_head(empty),
        tied=None if empty is None else bool(config.get_text_config(decoder=True).tie_word_embeddings),
        licence=licence(place, revision),
        source=Verdict(True),
        target=Verdict(True),
    )
    why_not = no_tokens or no_model or _no_weights(place, stored)
    remote = bool(getattr(config, "auto_map", None)) and no_model
    if remote and not (no_tokens or _no_weights(place, stored)):
        return replace(
            found,
            source=Verdict(True, "with trust_remote_code: true, since its architecture is code beside its weights"),
            target=Verdict(False, "its architecture is code beside its weights, which training never runs"),
        )
    if why_not:
        return replace(found, source=Verdict(False, why_not), target=Verdict(False, why_not))
    return replace(found, target=_as_target(config, empty))


def _as_target(config: Any, empty: Any) -> Verdict:
    import torch

    if getattr(config, "quantization_config", None):
        return Verdict(False, "its weights are stored quantised, and cannot be trained so; take the unquantised model")
    if not isinstance(empty.get_output_embeddings(), torch.nn.Linear):
        return Verdict(False, "its head is not one linear layer")
    return Verdict(True, "the head's formula is compared with the model's own logits when training loads it")


def _of_gguf(path: str, header: GgufHeader) -> ModelDescription:
    embedding, output = header.tensor("token_embd.weight"), header.tensor("output.weight")
    head = output or embedding
    verdict = _reads_gguf(header)
    unpacked = f"unpacked to {bytes_text(4 * header.parameters)} on first use"
    trained = f"{unpacked}; what is trained is not quantised" if header.quantised else unpacked
    return ModelDescription(
        path=path,
        kind=f"GGUF file, {'' if header.quantised else 'not '}quantised",
        architecture=header.architecture,
        layers=header.of_architecture("block_count"),
        hidden_size=header.of_architecture("embedding_length"),
        parameters=header.parameters,
        stored=header.kinds,
        dtype=run_dtype(header),
        context=header.of_architecture("context_length"),
        tokens=_gguf_tokens(header),
        head=None if head is None else head.shape[0],
        tied=output is None,
        licence=header.licence.get("license_name") or header.licence.get("license"),
        source=replace(verdict, reason=verdict.reason or unpacked),
        target=replace(verdict, reason=verdict.reason or trained),
    )


def _reads_gguf(header: GgufHeader) -> Verdict:
    """Whether transformers knows the architecture; that it reads it rightly is proven when it is read."""
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    # In metadata some architectures are written as transformers does not write them.
    known = {name.replace("_", "").replace("-", "") for name in (*GGUF_CONFIG_ARCHS, *GGUF_SUPPORTED_ARCHITECTURES)}
    if header.architecture.replace("_", "").replace("-", "") not in known:
        return Verdict(False, f"transformers reads no GGUF of the architecture {header.architecture}")
    if not header.tokens:
        return Verdict(False, "the file holds no tokenizer")
    return Verdict(True)


def _gguf_tokens(header: GgufHeader) -> Tokens | None:
    if not header.tokens:
        return None
    names = {"eos": "eos", "bos": "bos", "unk": "unknown", "pad": "padding"}
    ids = {role: header.metadata.get(f"tokenizer.ggml.{names[role]}_token_id") for role in ROLES}
    special = {role: f"{header.tokens[id]} ({id})" for role, id in ids.items() if id is not None}
    template = "tokenizer.chat_template" in header.metadata
    return Tokens(len(header.tokens), special, bool(adds(header, "bos")), bool(adds(header, "eos")), template)


def _config(path: str, revision: str | None) -> Any:
    from transformers import PreTrainedConfig

    place = Path(path)
    if place.is_dir() and not (place / "config.json").is_file():
        raise ConfigError(
            "The folder holds no model.",
            file=path,
            found=", ".join(sorted(item.name for item in place.iterdir())[:8]) or "nothing",
            expected="config.json, safetensors weights and a tokenizer, or one GGUF file",
            remedy="name the folder in which these files are",
        )
    try:
        stated, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
        if "auto_map" in stated:  # its own class would be code beside the weights
            return PreTrainedConfig.from_dict(stated)
    except Exception as error:  # no folder, repository, revision or network; no valid JSON
        raise ConfigError(
            "There is no model that can be described.",
            file=path,
            found=f"{type(error).__name__}: {one_line(error)}",
            expected="a model folder, a hub id, or a GGUF file",
            remedy="check the path; without a network, give a local folder",
        ) from None
    return read_config(path, revision, field="PATH")


def _tokens(path: str, revision: str | None) -> tuple[Tokens | None, str]:
    """The tokenizer, or why there is none."""
    try:
        tokenizer = load_tokenizer(path, revision)
    except FusionXError as error:
        return None, f"no tokenizer: {error.details.get('found', error.problem)}"
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
    special = {role: f"{tokenizer.convert_ids_to_tokens(id)} ({id})" for role, id in ids.items() if id is not None}
    whole = tokenizer("a")["input_ids"]
    adds_eos = tokenizer.eos_token_id is not None and whole[-1:] == [tokenizer.eos_token_id]
    template = bool(getattr(tokenizer, "chat_template", None))
    return Tokens(len(tokenizer), special, adds_bos(tokenizer), adds_eos, template), ""


def _empty_model(config: Any) -> tuple[Any, str]:
    """The model on the meta device, or why there is none."""
    import torch
    from transformers import AutoModelForCausalLM

    why_not = why_not_causal(config)
    if why_not:
        return None, why_not
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config), ""
    except Exception as error:  # not a causal language model, or a package of its own is missing
        return None, f"no causal language model: {(str(error).strip().splitlines() or [''])[0]:.160}"


def _head(empty: Any) -> int | None:
    layer = None if empty is None else empty.get_output_embeddings()
    return None if layer is None else layer.weight.shape[0]


def _stored(path: str, revision: str | None) -> dict[str, int]:
    """Values by stored type, from the headers of the safetensors; empty where there are none, or no network."""
    if not Path(path).is_dir():
        from huggingface_hub import get_safetensors_metadata

        try:
            counted = get_safetensors_metadata(path, revision=revision).parameter_count
            return {str(kind): count for kind, count in counted.items()}
        except Exception:  # no safetensors, or no network: what the config states must do
            return {}
    counts: dict[str, int] = {}
    for tensor in stored_tensors(Path(path)):
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + prod(tensor.shape)
    return counts


def _no_weights(path: str, stored: dict[str, int]) -> str:
    if stored or not Path(path).is_dir():
        return ""
    return "it has no safetensors weights (model*.safetensors); pickled ones are never read"


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
