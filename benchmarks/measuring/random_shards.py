"""Shards as the align stage writes them, filled with random but lifelike tokens and distributions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from fusionx.contract.shards.codec import Distributions, add_distributions, add_tokens
from fusionx.contract.shards.manifest import build_manifest, write_manifest
from fusionx.contract.shards.parts import PartEntry, Provenance, list_column, part_name, write_part
from fusionx.contract.shards.schema import text_hash


@dataclass(frozen=True)
class Shape:
    """Chunks of `length` tokens of a vocabulary of `vocab`, `sources` candidates of k entries at every position.

    With `shortest` the lengths vary, evenly from there to `length`.
    """

    length: int
    sources: int
    vocab: int
    k: int
    shortest: int | None = None


def random_shards(folder: Path, shape: Shape, splits: list[str], rows: int) -> tuple[str, dict[str, str]]:
    """One part of `rows` chunks per entry of `splits`; every source says the same distributions in another order.

    Returns:
        The folder of the target's tokens, and of every candidate's aligned shards.
    """
    rng = np.random.default_rng(0)
    lengths = [shape.length] * rows
    if shape.shortest is not None:
        lengths = rng.integers(shape.shortest, shape.length + 1, rows).tolist()
    positions = sum(lengths)
    ids, logprobs, tail = _said(rng, positions, shape)
    names = [f"source-{number}" for number in range(shape.sources)]
    entries: dict[str, list[PartEntry]] = {name: [] for name in ("tokens", *names)}
    for part, split in enumerate(splits):
        path = part_name(part)
        keys = pa.table(
            {
                "doc_id": pa.array(range(part * rows, (part + 1) * rows), pa.int64()),
                "chunk": pa.array([0] * rows, pa.int32()),
                "text_hash": pa.array([text_hash(str(row)) for row in range(rows)], pa.string()),
            }
        )
        input_ids = [_zipf(rng, length, shape.vocab) for length in lengths]
        ends = [np.cumsum(rng.integers(1, 9, length)).astype(np.int32) for length in lengths]
        tokens = add_tokens(keys.append_column("domain", pa.array(["text"] * rows, pa.string())), input_ids, ends)
        stats = {"domains": {"text": rows}}
        made = Provenance("tokens", split, {}, {})
        entries["tokens"].append(write_part(f"{folder}/tokens/{path}", tokens, made, positions, stats))
        for name in names:
            order = rng.permutation(positions)
            distributions = Distributions.from_top_k(ids[order], logprobs[order], tail[order])
            table = add_distributions(keys, distributions, lengths)
            table = table.append_column("status", list_column([np.ones(n, np.uint8) for n in lengths], pa.uint8()))
            table = table.append_column("nll", pa.array([2.0 * n for n in lengths], pa.float64()))
            table = table.append_column("nll_bytes", pa.array([4 * n for n in lengths], pa.int32()))
            made = Provenance("aligned", split, {"k": shape.k}, {})
            entries[name].append(write_part(f"{folder}/{name}/{path}", table, made, positions))
    write_manifest(f"{folder}/tokens", build_manifest("tokens", {}, {}, entries["tokens"]))
    for name in names:
        write_manifest(f"{folder}/{name}", build_manifest("aligned", {"k": shape.k}, {"source": name}, entries[name]))
    return f"{folder}/tokens", {name: f"{folder}/{name}" for name in names}


def _said(rng: np.random.Generator, positions: int, shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k likeliest of 400 tokens per position, from sure to unsure: ids and logprobs [N, k], tail [N]."""
    spread = rng.uniform(1, 5, (positions, 1)).astype(np.float32)
    logits = rng.normal(size=(positions, 400)).astype(np.float32) * spread
    logsumexp = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    logprobs = -np.sort(-logits, axis=1)[:, : shape.k] - logsumexp
    tail = (1 - np.exp(logprobs).sum(axis=1)).clip(0, 1)
    step = max(2, min(60, shape.vocab // shape.k))  # ids of a position stay apart
    steps = np.cumsum(rng.integers(1, step, (positions, shape.k)), axis=1)
    ids = (_zipf(rng, positions, shape.vocab)[:, None] + steps) % shape.vocab
    return ids, logprobs, tail


def _zipf(rng: np.random.Generator, n: int, vocab: int) -> np.ndarray:
    return np.minimum(rng.zipf(1.2, n), vocab - 1).astype(np.int32)
