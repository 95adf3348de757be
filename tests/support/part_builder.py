"""Small tables of every kind, written through the codec."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fusionx.contract.shards.codec import Distributions, add_distributions, add_token_nll, add_tokens
from fusionx.contract.shards.parts import list_column
from fusionx.contract.shards.schema import text_hash

K = 3


def random_distributions(rng: np.random.Generator, positions: int, k: int = K, vocab: int = 200) -> Distributions:
    ids = np.argsort(rng.random((positions, vocab)), axis=1)[:, :k].astype(np.int32)
    probs = np.sort(rng.dirichlet(np.full(k + 1, 0.5), positions)[:, :k])[:, ::-1].astype(np.float32)
    probs = np.maximum(probs, np.float32(1e-6))
    return Distributions.from_top_k(ids, np.log(probs), 1 - probs.sum(axis=1))


def table_of(kind: str, rows: int = 40, seed: int = 0) -> pa.Table:
    """`rows` chunks, chunk i of i % 5 tokens."""
    rng = np.random.default_rng(seed)
    lengths = [row % 5 for row in range(rows)]
    texts = [f"text {row} é 你 \0 {rng.integers(99)}" for row in range(rows)]
    table = pa.table(
        {
            "doc_id": pa.array(range(rows), pa.int64()),
            "chunk": pa.array(range(rows), pa.int32()),
            "text_hash": pa.array([text_hash(text) for text in texts], pa.string()),
        }
    )
    if kind in ("chunks", "tokens", "generated"):
        table = table.append_column("domain", pa.array([f"domain {row % 3}" for row in range(rows)], pa.string()))
    if kind in ("chunks", "generated"):
        return table.append_column("text", pa.array(texts, pa.string()))
    if kind in ("logits", "tokens"):
        input_ids = [rng.integers(0, 200, length).astype(np.int32) for length in lengths]
        ends = [np.cumsum(rng.integers(0, 9, length)).astype(np.int32) for length in lengths]
        table = add_tokens(table, input_ids, ends)
    if kind == "tokens":
        return table
    table = add_distributions(table, random_distributions(rng, sum(lengths)), lengths)
    if kind == "logits":
        return add_token_nll(table, rng.random(sum(lengths)).astype(np.float32))
    table = table.append_column("status", list_column([np.zeros(length, np.uint8) for length in lengths], pa.uint8()))
    table = table.append_column("nll", pa.array(rng.random(rows), pa.float64()))
    return table.append_column("nll_bytes", pa.array(range(rows), pa.int32()))
