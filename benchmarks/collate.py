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

import torch

from fusionx.benchmarks.measuring.figure import Figure, cpu_seconds
from fusionx.benchmarks.measuring.random_shards import Shape, random_shards
from fusionx.train.data.collate import Batch
from fusionx.train.data.loader import StepBatches, loader
from fusionx.train.data.shard_stream import Sample, ShardSet

LENGTH, SOURCES, VOCAB = 2048, 5, 32_000
REFERENCE_POSITIONS = 32


def figures(ranks: Sequence[int] = (10, 32), parts: int = 4, rows: int = 64) -> Iterator[Figure]:
    """All figures of every k in `ranks`, over `parts` parts of `rows` chunks."""
    for k in ranks:
        with TemporaryDirectory() as folder:
            made = random_shards(Path(folder), Shape(LENGTH, SOURCES, VOCAB, k), ["train"] * parts, rows)
            yield from _figures_of(f"{LENGTH}x{SOURCES}xk{k}", ShardSet(*made, "train"))


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
