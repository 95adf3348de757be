"""Tiny random models of many architectures as sources, and what they say row by row in float64."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from fusionx.contract.shards.codec import read_distributions, read_token_nll, read_tokens
from fusionx.contract.shards.manifest import build_manifest, write_manifest
from fusionx.contract.shards.parts import PartEntry, Provenance, read_part, write_part
from fusionx.contract.shards.schema import CHUNKS, text_hash
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.precompute.config import ModelConfig, PrecomputeConfig
from fusionx.precompute.logits.logits_stage import LogitsStage

K, BLOCK, VOCAB = 6, 96, 300
TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 2,
    "naïve café, 你好世界",
    "x",
    "def f():\n    return 1\n\n" * 3,
    "a",
    "",
]
CPU = torch.device("cpu")

_WIDE = {"hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 128, "num_hidden_layers": 2}
_USUAL = {**_WIDE, "intermediate_size": 64}
_GROUPED = {**_USUAL, "num_key_value_heads": 1, "head_dim": 16}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _USUAL),  # Yi is a Llama, too
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 12}),
    "gpt_neox": ("gpt_neox", _USUAL),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_heads": 2,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 12,
            "max_position_embeddings": 128,
        },
    ),
    "gpt_bigcode": ("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}),
    "starcoder2": ("starcoder2", _USUAL | {"num_key_value_heads": 1}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 32}),  # linear biases: goes beyond
    "bloom": ("bloom", {"hidden_size": 32, "n_head": 2, "n_layer": 2}),
    "gemma": ("gemma", _GROUPED),
    "gemma2": ("gemma2", {**_GROUPED, "sliding_window": 12, "final_logit_softcapping": 2.0}),
    "qwen2": ("qwen2", _USUAL | {"num_key_value_heads": 1}),
    "qwen3": ("qwen3", _GROUPED),
    "cohere": ("cohere", {**_USUAL, "logit_scale": 0.25}),
    "granite": ("granite", {**_USUAL, "logits_scaling": 3.0}),
    "phi3": ("phi3", _USUAL),
    "phi": ("phi", _USUAL),  # the head has a bias
    "opt": ("opt", _WIDE | {"ffn_dim": 64, "word_embed_proj_dim": 32}),  # calls `model.decoder`
    "mixtral": ("mixtral", _USUAL | {"num_key_value_heads": 1, "num_local_experts": 4}),
    "gemma3_text": (
        "gemma3_text",
        {**_GROUPED, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "falcon": ("falcon", _WIDE),
    "olmo2": ("olmo2", _USUAL),
    "smollm3": ("smollm3", _USUAL | {"num_key_value_heads": 1, "no_rope_layers": [1, 0]}),
    "lfm2": ("lfm2", _USUAL | {"num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]}),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}


def write_chunks(folder: Path, texts: list[str], block_size: int = BLOCK, parts: int = 2) -> None:
    entries = []
    provenance = Provenance("chunks", "train", {"block_size": block_size}, {})
    for part in range(parts):
        rows = [(doc, 0, text_hash(text), "d", text) for doc, text in enumerate(texts) if doc % parts == part]
        table = pa.table(dict(zip(CHUNKS.names, map(list, zip(*rows, strict=True)), strict=True)), schema=CHUNKS)
        entries.append(write_part(str(folder / f"part-{part:05d}.parquet"), table, provenance, tokens=0))
    write_manifest(str(folder), build_manifest("chunks", provenance.config, {}, entries))


def save_model(
    folder: Path,
    tokenizer: Path,
    architecture: str,
    dtype: torch.dtype = torch.float32,
    padding: int = 7,
    prepare: Callable[[Any], None] | None = None,
    **changes: Any,
) -> Path:
    """Random weights with a spread that gives peaked distributions; the head is `padding` places too large."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, sizes = ARCHITECTURES[architecture]
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, vocab_size=VOCAB + padding, **special, **(sizes | changes))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
            elif parameter.abs().max() == 0:
                parameter.normal_(0, 0.5)  # biases
    if prepare is not None:
        prepare(model)
    shutil.copytree(tokenizer, folder)
    model.to(dtype).save_pretrained(folder)
    return folder


def stage_of(root: Path, folder: Path, options: dict[str, Any] | None = None, **config: Any) -> LogitsStage:
    model = ModelConfig(id="m", path=str(folder), **(options or {}))
    settings = PrecomputeConfig(**{"k": K, "batch_tokens": 256, "device": "cpu", **config})
    return LogitsStage(model, settings, str(root / "chunks"), str(folder) + "-logits")


def run(stage: LogitsStage) -> list[PartEntry]:
    worker = stage.worker()
    return [worker(unit) for unit in stage.units()]


def stored(stage: LogitsStage, entry: PartEntry) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per row of a part: ids int [T, k], logprobs float16 [T, k], nll [T] (0 at the end)."""
    table, _ = read_part(f"{stage.output}/{entry.name}", "logits")
    distributions = read_distributions(table)
    whole = (*distributions.padded(K), read_token_nll(table, distributions))
    offsets = read_tokens(table)[0].offsets
    return [tuple(values[start:stop] for values in whole) for start, stop in pairwise(offsets)]


def log_softmax(model: Any, tokens: np.ndarray) -> np.ndarray:
    """float64 [T, V] of one text alone: no batch, no padding, no mask."""
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), dim=-1).numpy()


def assert_stored(root: Path, stage: LogitsStage, says: Callable[[np.ndarray], np.ndarray]) -> None:
    """What the parts hold, in fp16, against `says` (tokens -> log-probabilities float64 [T, V])."""
    encoder = load_encoder(stage.model.path)
    for entry in run(stage):
        chunks, _ = read_part(str(root / "chunks" / entry.name), "chunks")
        nll_sum = 0.0
        for text, (ids, logprobs, nll) in zip(chunks.column("text").to_pylist(), stored(stage, entry), strict=True):
            tokens = encoder.encode([text])[0].ids
            assert len(ids) == len(tokens)
            if not len(tokens):
                continue
            expected = says(tokens)
            exact_nll = -np.take_along_axis(expected[:-1], tokens[1:, None].astype(np.int64), 1)[:, 0]
            nll_sum += exact_nll.sum()
            known = expected[:, : encoder.vocab_size]
            assert ids.max() < encoder.vocab_size
            assert all(len(set(row)) == K for row in ids.tolist())
            close = {"rtol": 2**-11, "atol": 1e-4}
            np.testing.assert_allclose(nll, np.append(exact_nll, 0), **close)
            np.testing.assert_allclose(logprobs, -np.sort(-known)[:, :K], **close)
            np.testing.assert_allclose(logprobs, np.take_along_axis(known, ids, 1), **close)
        assert entry.stats["nll"] == pytest.approx(nll_sum, rel=1e-5)
