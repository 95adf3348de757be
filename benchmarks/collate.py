"""Making training batches: from cached parts, with the parts' decoding, and through a worker process.

The reference does what the method's published code does for a sample: a dense float row over the vocabulary for every
position of every source, filled entry by entry. Of it only a few positions are run, and counted up. Seconds are CPU
seconds; the worker's speed is by the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import torch

from benchmarks.figure import Figure, cpu_seconds
from contract.codec import Distributions, add_distributions, add_tokens
from contract.manifest import build_manifest, write_manifest
from contract.schema import text_hash
from contract.shard import PartEntry, Provenance, list_column, part_name, write_part
from train.collate import Batch
from train.loader import StepBatches, loader
from train.stream import Sample, ShardSet

LENGTH, SOURCES, VOCAB = 2048, 5, 32_000
REFERENCE_POSITIONS = 32


def figures(ranks: Sequence[int] = (10, 32), parts: int = 4, rows: int = 64) -> Iterator[Figure]:
    """All figures of every k in `ranks`, over `parts` parts of `rows` chunks."""
    for k in ranks:
        with TemporaryDirectory() as folder:
            yield from _figures_of(f"{LENGTH}x{SOURCES}xk{k}", _shards(Path(folder), k, parts, rows))


def _figures_of(case: str, shards: ShardSet) -> Iterator[Figure]:
    batches = StepBatches(shards, shards.order(seed=0), 1, pad_id=0)
    steps = sum(shards.rows)
    decoding, _ = cpu_seconds(lambda: _take(batches[step] for step in range(steps)), n=1)
    turn = count()
    seconds, made = cpu_seconds(lambda: batches[next(turn) % steps], n=100)
    sample = shards.sample(0, 0)
    dense, _ = cpu_seconds(lambda: _dense(sample, REFERENCE_POSITIONS), n=5)
    reference = dense * LENGTH / REFERENCE_POSITIONS
    against = f"dense rows ({REFERENCE_POSITIONS} positions, counted up)"
    dense_bytes = SOURCES * LENGTH * VOCAB * 2  # bfloat16, as the published code keeps them
    size = _bytes(made[0])
    packing = cpu_seconds(lambda: shards.order(seed=0, pack=LENGTH), n=3)[0] / steps
    yield Figure("collate", case, "seconds", seconds, "s", against, seconds / reference, 100)
    yield Figure("collate", case, "bytes", size, "B", against, size / dense_bytes)
    whole = decoding / steps
    yield Figure("collate", case, "seconds_with_decoding", whole, "s", against, whole / reference, steps)
    yield Figure("collate", case, "worker_samples_per_s", _worker_speed(batches, steps), "samples/s", n=steps - 1)
    yield Figure("collate", case, "pack_seconds_per_million_chunks", 1e6 * packing, "s", n=3)


def _worker_speed(batches: StepBatches, steps: int) -> float:
    """Of one worker that decodes every part once, from its first batch on."""
    made = loader(batches, 0, steps, workers=1)
    next(made)
    started = time.perf_counter()
    _take(made)
    return (steps - 1) / (time.perf_counter() - started)


def _take(batches: Iterable[list[Batch]]) -> None:
    """All of them, none kept."""
    for _ in batches:
        pass


def _dense(sample: Sample, positions: int) -> torch.Tensor:
    dense = torch.zeros(SOURCES, positions, VOCAB, dtype=torch.bfloat16)
    for source in range(SOURCES):
        for position in range(positions):
            ids, probs = sample.ids[position, source].tolist(), sample.probs[position, source].tolist()
            for token, prob in zip(ids, probs, strict=True):
                dense[source, position, token] = prob
    return dense


def _bytes(batch: Batch) -> int:
    tensors = [*batch, *(batch.candidates or ())]
    kept = {one.data_ptr(): one.nbytes for one in tensors if isinstance(one, torch.Tensor)}
    return sum(kept.values())


def _shards(folder: Path, k: int, parts: int, rows: int) -> ShardSet:
    """Parts as the align stage writes them; every source says the same distributions in another order."""
    rng = np.random.default_rng(0)
    ids, logprobs, tail = _said(rng, rows * LENGTH, k)
    names = [f"source-{number}" for number in range(SOURCES)]
    entries: dict[str, list[PartEntry]] = {name: [] for name in ("tokens", *names)}
    for part in range(parts):
        path, lengths = part_name(part), [LENGTH] * rows
        keys = pa.table(
            {
                "doc_id": pa.array(range(part * rows, (part + 1) * rows), pa.int64()),
                "chunk": pa.array([0] * rows, pa.int32()),
                "text_hash": pa.array([text_hash(str(row)) for row in range(rows)], pa.string()),
            }
        )
        domains = pa.array(["text"] * rows, pa.string())
        input_ids = [_zipf(rng, LENGTH) for _ in range(rows)]
        ends = [np.cumsum(rng.integers(1, 9, LENGTH)).astype(np.int32) for _ in range(rows)]
        tokens = add_tokens(keys.append_column("domain", domains), input_ids, ends)
        made = Provenance("tokens", "train", {}, {})
        entries["tokens"].append(write_part(f"{folder}/tokens/{path}", tokens, made, rows * LENGTH))
        for name in names:
            status = [np.ones(LENGTH, np.uint8)] * rows
            order = rng.permutation(rows * LENGTH)
            distributions = Distributions.from_top_k(ids[order], logprobs[order], tail[order])
            table = add_distributions(keys, distributions, lengths)
            table = table.append_column("status", list_column(status, pa.uint8()))
            table = table.append_column("nll", pa.array([2.0 * LENGTH] * rows, pa.float64()))
            table = table.append_column("nll_bytes", pa.array([4 * LENGTH] * rows, pa.int32()))
            made = Provenance("aligned", "train", {"k": k}, {})
            entries[name].append(write_part(f"{folder}/{name}/{path}", table, made, rows * LENGTH))
    write_manifest(f"{folder}/tokens", build_manifest("tokens", {}, {}, entries["tokens"]))
    for name in names:
        write_manifest(f"{folder}/{name}", build_manifest("aligned", {"k": k}, {"source": name}, entries[name]))
    return ShardSet(f"{folder}/tokens", {name: f"{folder}/{name}" for name in names}, "train")


def _said(rng: np.random.Generator, positions: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k likeliest of 400 tokens per position, from sure to unsure: ids and logprobs [N, k], tail [N]."""
    logits = rng.normal(size=(positions, 400)).astype(np.float32) * rng.uniform(1, 5, (positions, 1)).astype(np.float32)
    logsumexp = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    logprobs = -np.sort(-logits, axis=1)[:, :k] - logsumexp
    tail = (1 - np.exp(logprobs).sum(axis=1)).clip(0, 1)
    ids = (_zipf(rng, positions)[:, None] + np.cumsum(rng.integers(1, 60, (positions, k)), axis=1)) % VOCAB
    return ids, logprobs, tail


def _zipf(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.minimum(rng.zipf(1.2, n), VOCAB - 1).astype(np.int32)
