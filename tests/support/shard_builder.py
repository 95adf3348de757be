"""Small outputs of the align stage, written with the project's own writer: tokens, aligned shards, models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusionx.contract.shards.codec import Distributions, add_distributions, add_token_nll, add_tokens
from fusionx.contract.shards.manifest import build_manifest, write_manifest
from fusionx.contract.shards.parts import Provenance, list_column, part_name, write_part
from fusionx.contract.shards.schema import text_hash
from fusionx.train.config import PRESETS, MethodConfig, OptimizerConfig, RunConfig, TrainJob

VOCAB = 300
K = 4


@dataclass(frozen=True)
class Said:
    """What one candidate says about a chunk: ids int32 [L, k], probs float32 [L, k], status uint8 [L]."""

    ids: np.ndarray
    probs: np.ndarray
    status: np.ndarray
    nll: float = 10.0
    nll_bytes: int = 20


@dataclass(frozen=True)
class Chunk:
    """One row of every part."""

    doc_id: int
    chunk: int
    domain: str
    text: str
    input_ids: np.ndarray
    ends: np.ndarray
    said: dict[str, Said] = field(default_factory=dict)


Parts = list[tuple[str, list[Chunk]]]
"""(split, rows) of every part, in order."""


def write_tokens(folder: Path, parts: Parts) -> str:
    entries = []
    for index, (split, rows) in enumerate(parts):
        table = pa.table({**_keys(rows), "domain": pa.array([row.domain for row in rows], pa.string())})
        table = add_tokens(table, [row.input_ids for row in rows], [row.ends for row in rows])
        provenance = Provenance("tokens", split, {}, {})
        stats = {"domains": dict(Counter(row.domain for row in rows))}
        path = f"{folder}/{part_name(index)}"
        entries.append(write_part(path, table, provenance, _tokens(rows), stats))
    write_manifest(str(folder), build_manifest("tokens", {}, {"fingerprint": "f"}, entries))
    return str(folder)


def write_aligned(folder: Path, parts: Parts, candidate: str, skip_part: int | None = None) -> str:
    entries = []
    for index, (split, rows) in enumerate(parts):
        if index == skip_part:
            continue
        said = [row.said[candidate] for row in rows]
        table = add_distributions(
            pa.table(_keys(rows)),
            Distributions.concatenate([distributions_of(one) for one in said]),
            [len(one.status) for one in said],
        )
        table = table.append_column("status", list_column([one.status for one in said], pa.uint8()))
        table = table.append_column("nll", pa.array([one.nll for one in said], pa.float64()))
        table = table.append_column("nll_bytes", pa.array([one.nll_bytes for one in said], pa.int32()))
        k = max((one.ids.shape[1] for one in said), default=K)
        provenance = Provenance("aligned", split, {"k": k}, {})
        entries.append(write_part(f"{folder}/{part_name(index)}", table, provenance, _tokens(rows)))
    write_manifest(str(folder), build_manifest("aligned", {"k": k}, {"source": candidate}, entries))
    return str(folder)


def write_logits(folder: Path, parts: Parts, candidate: str) -> str:
    """What a model says of its next tokens, which are random cuts of the same bytes after a BOS.

    All of its distributions are certain of token 0, which never comes, so every NLL is stored as such.
    """
    scored = _random_scores(candidate)
    entries = []
    for index, (split, rows) in enumerate(parts):
        ends, nll = zip(*map(scored, rows), strict=True) if rows else ((), ())
        lengths = [len(row) for row in ends]
        n = sum(lengths)
        table = add_tokens(pa.table(_keys(rows)), [np.ones(length, np.int32) for length in lengths], ends)
        certain = Distributions.from_padded(np.zeros((n, 1), np.int32), np.zeros((n, 1)), np.ones(n, int), np.zeros(n))
        table = add_token_nll(add_distributions(table, certain, lengths), np.concatenate([np.zeros(0), *nll]))
        provenance = Provenance("logits", split, {"k": 1}, {})
        entries.append(write_part(f"{folder}/{part_name(index)}", table, provenance, n))
    write_manifest(str(folder), build_manifest("logits", {"k": 1}, {"source": candidate}, entries))
    return str(folder)


def _random_scores(candidate: str) -> Callable[[Chunk], tuple[np.ndarray, np.ndarray]]:
    """Of a chunk: ends int32 [T] and the NLLs [T] of the next tokens."""
    rng = np.random.default_rng(list(candidate.encode()))

    def scored(chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        size = int(chunk.ends.max(initial=0))
        ends = np.unique([0, *np.flatnonzero(rng.random(size) < 0.6), size]).astype(np.int32)
        return ends, rng.uniform(0.1, 9, len(ends))

    return scored


def distributions_of(said: Said) -> Distributions:
    """What the align stage would store of it."""
    probs = said.probs.astype(np.float32)
    with np.errstate(divide="ignore"):
        logprobs = np.log(probs)
    return Distributions.from_padded(said.ids, logprobs, (probs > 0).sum(axis=1), 1 - probs.sum(axis=1))


def _keys(rows: list[Chunk]) -> dict[str, Any]:
    return {
        "doc_id": pa.array([row.doc_id for row in rows], pa.int64()),
        "chunk": pa.array([row.chunk for row in rows], pa.int32()),
        "text_hash": pa.array([text_hash(row.text) for row in rows], pa.string()),
    }


def _tokens(rows: list[Chunk]) -> int:
    return sum(len(row.input_ids) for row in rows)


def random_said(rng: np.random.Generator, input_ids: np.ndarray, expert: bool) -> Said:
    """An expert gives the next token half of its mass; the others guess. A seventh of the places is not aligned."""
    length = len(input_ids)
    shuffled = np.stack([rng.permutation(VOCAB)[: K + 1] for _ in range(length)]) if length else np.zeros((0, K + 1))
    ids, spare = shuffled[:, :K].copy(), shuffled[:, K:]
    probs = np.sort(rng.dirichlet(np.full(K + 1, 0.5), size=length)[:, :K], axis=1)[:, ::-1] * 0.9
    if expert and length > 1:
        ids[:-1, 0] = input_ids[1:]
        ids[:-1, 1:] = np.where(ids[:-1, 1:] == ids[:-1, :1], spare[:-1], ids[:-1, 1:])
        probs = np.concatenate([np.full((length, 1), 0.6), probs[:, 1:] * 0.2], 1)
    status = np.where(rng.random(length) < 1 / 7, 0, 1).astype(np.uint8)
    ids[status == 0], probs[status == 0] = -1, 0
    ids[probs == 0] = -1
    nll = (5.0 if expert else 30.0) + rng.random()
    return Said(ids.astype(np.int32), probs.astype(np.float32), status, nll, 20)


def random_chunk(rng: np.random.Generator, doc_id: int, candidates: list[str], length: int | None = None) -> Chunk:
    """Random tokens; every candidate is the expert of one domain."""
    length = int(rng.integers(2, 12)) if length is None else length
    input_ids = rng.integers(0, VOCAB, length).astype(np.int32)
    ends = np.cumsum(rng.integers(0, 5, length)).astype(np.int32)
    expert = doc_id % max(1, len(candidates))
    said = {name: random_said(rng, input_ids, expert == j) for j, name in enumerate(candidates)}
    return Chunk(doc_id, doc_id % 3, f"domain-{expert}", f"text {doc_id}", input_ids, ends, said)


def random_parts(rows: list[int], candidates: list[str], seed: int = 0, validation_rows: int = 3) -> Parts:
    """Training parts of `rows` chunks and one validation part."""
    rng = np.random.default_rng(seed)
    ids = iter(range(10_000))
    parts: Parts = [("train", [random_chunk(rng, next(ids), candidates) for _ in range(count)]) for count in rows]
    return [*parts, ("validation", [random_chunk(rng, next(ids), candidates) for _ in range(validation_rows)])]


def write_set(folder: Path, parts: Parts, candidates: list[str]) -> tuple[str, dict[str, str]]:
    """The folders of tokens and of every candidate's aligned shards."""
    tokens = write_tokens(folder / "tokens", parts)
    return tokens, {name: write_aligned(folder / name, parts, name) for name in candidates}


def with_text(parts: Parts, doc_id: int, text: str) -> Parts:
    """The same parts with another text under one key."""
    return [
        (split, [replace(row, text=text) if row.doc_id == doc_id else row for row in rows]) for split, rows in parts
    ]


CORPUS = [
    "The quick brown fox jumps over the lazy dog. ",
    "def add(left, right):\n    return left + right\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ",
]


def write_tiny_model(folder: Path, dtype: str = "float32") -> Path:
    """A random Llama with dropout (so that a resumed run needs the RNG) and a byte-level BPE tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS * 4,
        trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False),
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>").save_pretrained(folder)
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        attention_dropout=0.2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def corpus_parts(model: Path, candidates: list[str], rows: tuple[int, ...] = (5, 4, 4)) -> Parts:
    """Real text under the model's own tokenizer, with invented candidates; domain `absent` is in validation only."""
    from fusionx.contract.tokens.encoder import load_encoder

    encoder = load_encoder(str(model))
    rng = np.random.default_rng(5)

    def chunk(doc_id: int) -> Chunk:
        domain = doc_id % len(CORPUS)
        text = CORPUS[domain] * int(rng.integers(1, 3)) + str(doc_id)
        encoding = encoder.encode([text])[0]
        said = {name: random_said(rng, encoding.ids, domain == j) for j, name in enumerate(candidates)}
        return Chunk(doc_id, 0, f"domain-{domain}", text, encoding.ids, encoding.ends, said)

    ids = iter(range(1000))
    parts: Parts = [("train", [chunk(next(ids)) for _ in range(count)]) for count in rows]
    validation = [chunk(next(ids)) for _ in range(5)]
    return [*parts, ("validation", [*validation[:-1], replace(validation[-1], domain="absent")])]


def make_job(
    model: Path,
    tokens: str,
    aligned: dict[str, str],
    output: Path,
    method: str | MethodConfig = "fusionx-network",
    **changed: Any,
) -> TrainJob:
    """A job of a dozen steps."""
    name, config = (method, PRESETS[method]) if isinstance(method, str) else ("custom", method)
    run = {"validate_every": 4, "log_every": 2, "checkpoint_every": 3, "validate_tokens": 128, "head_block": 32}
    optimizer = {"learning_rate": 1e-2, "batch_size": 3, "epochs": 2.3}
    return TrainJob(
        method_name=name,
        method=config,
        seed=changed.pop("seed", 0),
        optimizer=OptimizerConfig(**{**optimizer, **changed.pop("optimizer", {})}),
        run=RunConfig(**{**run, "precision": "fp32", "device": "cpu", **changed.pop("run", {})}),
        target="target",
        target_path=str(model),
        target_weights="w",
        tokens=tokens,
        aligned={} if config.teacher == "none" else aligned,
        inputs=changed.pop("inputs", {"tokens": "t"}),
        output=str(output),
    )
