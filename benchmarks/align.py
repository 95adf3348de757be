"""Alignment of one source's shards with the target, against the straightforward way.

Real shards: one of the demo's models over the demo's training corpus, mapped to the demo's target. The reference does
as the published code, plainly written: one dynamic program over the whole of both token sequences (edit distance as the
cost of a pair), then every position's entries through a dictionary, in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from align.aligned_stage import AlignedStage, AlignWorker
from align.config import AlignConfig
from align.edit import token_distance
from align.positions import align_positions
from align.projection import project
from align.tokens_stage import TokensStage
from benchmarks.figure import Figure, interleaved_seconds
from contract.codec import Distributions, read_distributions, read_tokens
from contract.errors import DataError
from contract.manifest import build_manifest, write_manifest
from contract.shard import read_part
from contract.stage import Stage, Unit
from precompute.chunk_stage import ChunkStage
from precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig
from precompute.logits_stage import LogitsStage

RANKS = (10, 64)
DATA = "data/demo"
SOURCE, TARGET = "coder", "target"
BLOCK = 256
_REPEATS = 8
"""How often the part's positions stand one after the other in what the kernel is given."""


def figures() -> Iterator[Figure]:
    """Target tokens per second of one core, for every k in `RANKS`.

    Raises:
        DataError: the demo's models or corpus are not there.
    """
    import torch

    if not Path(DATA, "models", SOURCE).is_dir():
        raise DataError("The demo's models are missing.", file=f"{DATA}/models", remedy="run `make demo-inputs`")
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        models = [ModelConfig(id=name, path=f"{DATA}/models/{name}") for name in (TARGET, SOURCE)]
        corpus = CorpusConfig(path=f"{DATA}/corpus", splits=["train"])
        _make(ChunkStage(corpus, ChunkConfig(block_size=BLOCK, part_bytes=1_000_000), models, f"{folder}/chunks"))
        _make(TokensStage(TARGET, models[0].path, None, ["train"], f"{folder}/chunks", f"{folder}/tokens"))
        for k in RANKS:
            logits = LogitsStage(models[1], PrecomputeConfig(k=k), f"{folder}/chunks", f"{folder}/logits-{k}")
            _make(logits)
            yield from _figures_at(k, _aligned_stage(k, folder))


def _aligned_stage(k: int, folder: str) -> AlignedStage:
    return AlignedStage(
        source=SOURCE,
        source_path=f"{DATA}/models/{SOURCE}",
        source_revision=None,
        target=TARGET,
        target_path=f"{DATA}/models/{TARGET}",
        target_revision=None,
        mode="first-token",
        config=AlignConfig(),
        logits=f"{folder}/logits-{k}",
        tokens=f"{folder}/tokens",
        output=f"{folder}/aligned-{k}",
    )


def _make(stage: Stage) -> None:
    units, worker = list(stage.units()), stage.worker()
    provenance = stage.provenance(units[0])
    entries = [worker(unit) for unit in units]
    write_manifest(stage.output, build_manifest(stage.kind, provenance.config, provenance.identity, entries))


def _figures_at(k: int, stage: AlignedStage) -> Iterator[Figure]:
    worker, units = stage.worker(), stage.units()
    assert isinstance(worker, AlignWorker)
    part = _Part(worker, units[0])
    tokens, many, n = len(part.target_ids), len(part.index) * _REPEATS, 5
    index = np.tile(part.index, _REPEATS)
    works: dict[str, Callable[[], object]] = {
        "kernel": partial(project, part.distributions, index, worker.vocab_map, k),
        "positions": part.positions,
        "parquet": partial(worker, units[0]),
        "reference": part.reference,
    }
    seconds = interleaved_seconds(works, n)
    rates = {
        "kernel": many / seconds["kernel"],
        "positions": tokens / seconds["positions"],
        "parquet": tokens / seconds["parquet"],
        "reference": part.first_row / seconds["reference"],
    }
    against = "one dynamic program over the chunk, and dictionaries"
    for name in ("kernel", "positions", "parquet"):
        ratio = rates[name] / rates["reference"]
        yield Figure("align", f"k{k}", f"{name}_tokens_per_s", rates[name], "tokens/s", against, ratio, n)
    yield Figure("align", f"k{k}", "reference_tokens_per_s", rates["reference"], "tokens/s", n=n)
    yield Figure("align", f"k{k}", "reference_length", part.first_row, "tokens", n=n)


class _Part:
    """One unit's inputs in memory."""

    def __init__(self, worker: AlignWorker, unit: Unit) -> None:
        tokens, logits = (read_part(unit.inputs[kind], kind)[0] for kind in ("tokens", "logits"))
        self._worker = worker
        self.distributions: Distributions = read_distributions(logits)
        (self._target, self._target_ends), (self._source, self._source_ends) = read_tokens(tokens), read_tokens(logits)
        self.target_ids = self._target.values
        self.index = self.positions()
        lengths = self._target.lengths()
        self._row = int(np.argmax(lengths))
        self.first_row = int(lengths[self._row])

    def positions(self) -> np.ndarray:
        """Source positions of all the part's target positions, as the stage finds them."""
        found = []
        for row in range(len(self._target)):
            index, _ = align_positions(
                self._source_ends.row(row),
                self._source.row(row),
                self._target_ends.row(row),
                self._target.row(row),
                self._worker.source.table,
                self._worker.target.table,
            )
            found.append(np.where(index >= 0, index + self._source.offsets[row], -1))
        return np.concatenate(found)

    def reference(self) -> list[list[tuple[float, int]]]:
        """The longest chunk, the straightforward way."""
        source, target = self._worker.source.table, self._worker.target.table
        source_pieces = [source.token_bytes[token] or b"" for token in self._source.row(self._row).tolist()]
        target_pieces = [target.token_bytes[token] or b"" for token in self._target.row(self._row).tolist()]
        first = int(self._source.offsets[self._row])
        ids, logprobs = self.distributions.padded()
        mapped = self._worker.vocab_map.target_ids
        found = []
        for _, at in _full_program(source_pieces, target_pieces):
            merged: dict[int, float] = {}
            for token, logprob in zip(ids[first + at].tolist(), logprobs[first + at].tolist(), strict=True):
                goal = int(mapped[token])
                merged[goal] = merged.get(goal, 0.0) + np.exp(logprob)
            found.append(sorted(((mass, goal) for goal, mass in merged.items()), reverse=True))
        return found


def _full_program(source: list[bytes], target: list[bytes]) -> list[tuple[int, int]]:
    """(target position, source position) along the cheapest path through the whole table of pairs."""
    cost = np.full((len(target) + 1, len(source) + 1), np.inf)
    cost[0, 0] = 0.0
    for row, piece in enumerate(target, start=1):
        for column, other in enumerate(source, start=1):
            best = min(cost[row - 1, column - 1], cost[row - 1, column], cost[row, column - 1])
            cost[row, column] = best + token_distance(piece, other)
    path, row, column = [], len(target), len(source)
    while row and column:
        path.append((row - 1, column - 1))
        steps = ((row - 1, column - 1), (row - 1, column), (row, column - 1))
        row, column = min(steps, key=lambda step: cost[step])
    return path
