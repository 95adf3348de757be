"""Tiny random models under real tokenizers, and the stages over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fusionx.align.tokens_stage import TokensStage
from fusionx.benchmarks.align import aligned_stage
from fusionx.benchmarks.map import gemma_262k, llama_128k, mistral_32k, qwen_152k, smollm2_49k, tekken_131k
from fusionx.contract.stage import Stage
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig, Split
from fusionx.precompute.logits.logits_stage import LogitsStage

Tokenizers = Mapping[str, Callable[[], Any]]
K = 8
PART_BYTES = 10_000


def real_tokenizers() -> Tokenizers:
    """The target's first."""
    return {
        "smollm2": smollm2_49k,
        "mistral": mistral_32k,
        "llama3": llama_128k,
        "tekken": tekken_131k,
        "qwen": qwen_152k,
        "gemma": gemma_262k,
    }


def make_models(folder: Path, tokenizers: Tokenizers) -> dict[str, Path]:
    """One of a few random weights for each."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    models = {}
    for name, make in tokenizers.items():
        models[name] = folder / name
        tokenizer = make()
        tokenizer.save_pretrained(models[name])
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=256,
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(models[name])
    return models


def stages_of(
    folder: Path,
    models: Mapping[str, Path],
    block: int,
    splits: list[Split],
    tokens_of: Sequence[Split] = ("train",),
) -> tuple[dict[str, Callable[[], list[Stage]]], dict[str, Path]]:
    """Groups of stages in their order, made when their inputs are there; and outputs, by kind and source.

    splits: that are cut. tokens_of: of which the target's tokens are kept; sources read the training text.
    """
    target, *sources = (ModelConfig(id=name, path=str(path)) for name, path in models.items())
    outputs = {"chunk": folder / "chunks", "tokens": folder / "tokens"}
    outputs |= {f"logits/{model.id}": folder / "logits" / model.id for model in (target, *sources)}
    outputs |= {f"aligned/{model.id}": folder / "aligned" / model.id for model in sources}

    def chunk() -> list[Stage]:
        corpus = CorpusConfig(path=str(folder / "corpus"), domain="domain", splits=splits)
        config = ChunkConfig(block_size=block, part_bytes=PART_BYTES)
        return [ChunkStage(corpus, config, [target, *sources], str(outputs["chunk"]))]

    def precompute(model: ModelConfig) -> list[Stage]:
        config = PrecomputeConfig(k=K, splits=["train"], batch_tokens=2048, device="cpu")
        return [LogitsStage(model, config, str(outputs["chunk"]), str(outputs[f"logits/{model.id}"]))]

    def tokens() -> list[Stage]:
        return [
            TokensStage(target.id, target.path, None, list(tokens_of), str(outputs["chunk"]), str(outputs["tokens"]))
        ]

    def align(source: ModelConfig) -> list[Stage]:
        shards = (str(outputs[name]) for name in (f"logits/{source.id}", f"logits/{target.id}", "tokens"))
        return [replace(aligned_stage(source, target, "walk", *shards), output=str(outputs[f"aligned/{source.id}"]))]

    groups: dict[str, Callable[[], list[Stage]]] = {"chunk": chunk}
    groups |= {f"precompute {model.id}": partial(precompute, model) for model in (target, *sources)}
    groups["tokens"] = tokens
    return groups | {f"align {source.id}": partial(align, source) for source in sources}, outputs
