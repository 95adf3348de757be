"""Alignment of one source's shards with the target, against the straightforward way.

Real shards: one of the demo's models over the demo's training corpus, mapped to the demo's target. The reference does
as the published code, plainly written: one dynamic program over the whole of both token sequences (edit distance as the
cost of a pair), then every position's entries through a dictionary, in Python. Its cost per token grows with the
sequence, so it is timed over one chunk, and once over as many chunks in a row as have `LONG` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fusionx.align.aligned_stage import AlignedStage, AlignWorker
from fusionx.align.config import AlignConfig, MapMode
from fusionx.align.positions import align_positions
from fusionx.align.projection import project
from fusionx.align.tokens_stage import TokensStage
from fusionx.align.vocabulary.edit_distance import token_distance
from fusionx.benchmarks.measuring.figure import Figure, cpu_seconds
from fusionx.contract.errors import DataError
from fusionx.contract.shards.codec import Distributions, read_distributions, read_tokens
from fusionx.contract.shards.manifest import Manifest, build_manifest, write_manifest
from fusionx.contract.shards.parts import read_part
from fusionx.contract.stage import Stage, Unit
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig
from fusionx.precompute.logits.logits_stage import LogitsStage

RANKS = (10, 64)
DATA = "data/demo"
SOURCE, TARGET = "coder", "target"
BLOCK = 256
LONG = 2048
"""Tokens of the paper's block, which the published figures are of."""


def figures() -> Iterator[Figure]:
    """Target tokens per CPU second of one core, for every k in `RANKS`.

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
        make(ChunkStage(corpus, ChunkConfig(block_size=BLOCK, part_bytes=1_000_000), models, f"{folder}/chunks"))
        make(TokensStage(TARGET, models[0].path, None, ["train"], f"{folder}/chunks", f"{folder}/tokens"))
        for k in RANKS:
            logits = LogitsStage(models[1], PrecomputeConfig(k=k), f"{folder}/chunks", f"{folder}/logits-{k}")
            make(logits)
            yield from _figures_at(
                k, aligned_stage(models[1], models[0], "first-token", logits.output, f"{folder}/tokens")
            )


def aligned_stage(source: ModelConfig, target: ModelConfig, mode: MapMode, logits: str, tokens: str) -> AlignedStage:
    """Of two model folders and their shards; what it makes lies beside the shards."""
    return AlignedStage(
        source=source.id,
        source_path=source.path,
        source_revision=None,
        target=target.id,
        target_path=target.path,
        target_revision=None,
        mode=mode,
        config=AlignConfig(),
        logits=logits,
        tokens=tokens,
        output=f"{logits}-{mode}-{target.id}",
    )


def make(stage: Stage) -> Manifest:
    """Runs a stage in this process, unit after unit."""
    units, worker = list(stage.units()), stage.worker()
    provenance = stage.provenance(units[0])
    entries = [worker(unit) for unit in units]
    manifest = build_manifest(stage.kind, provenance.config, provenance.identity, entries)
    write_manifest(stage.output, manifest)
    return manifest


def _figures_at(k: int, stage: AlignedStage) -> Iterator[Figure]:
    worker, units = stage.worker(), stage.units()
    assert isinstance(worker, AlignWorker)
    part = _Part(worker, units[0])
    tokens, n = len(part.target_ids), 5
    chunk, block = part.longest_chunk(), part.chunks_of(LONG)
    works: dict[str, Callable[[], object]] = {
        "kernel": partial(project, part.distributions, part.index, worker.vocab_map, k),
        "positions": part.positions,
        "parquet": partial(worker, units[0]),
        "reference": partial(part.reference, chunk),
    }
    seconds = {name: cpu_seconds(work, n)[0] for name, work in works.items()}
    rates = {name: tokens / seconds[name] for name in ("kernel", "positions", "parquet")}
    once, _ = cpu_seconds(partial(part.reference, block), 1)
    long_rate = part.length(block) / once
    against = f"one dynamic program over {part.length(block)} tokens, and dictionaries"
    for name, rate in rates.items():
        yield Figure("align", f"k{k}", f"{name}_tokens_per_s", rate, "tokens/s", against, rate / long_rate, n)
    yield Figure("align", f"k{k}", "reference_tokens_per_s", long_rate, "tokens/s")
    yield Figure("align", f"k{k}", "reference_length", part.length(block), "tokens")
    chunk_rate = part.length(chunk) / seconds["reference"]
    yield Figure("align", f"k{k}", "reference_chunk_tokens_per_s", chunk_rate, "tokens/s", n=n)
    yield Figure("align", f"k{k}", "reference_chunk_length", part.length(chunk), "tokens")


class _Part:
    """One unit's inputs in memory."""

    def __init__(self, worker: AlignWorker, unit: Unit) -> None:
        tokens, logits = (read_part(unit.inputs[kind], kind)[0] for kind in ("tokens", "logits"))
        self._worker = worker
        self.distributions: Distributions = read_distributions(logits)
        (self._target, self._target_ends), (self._source, self._source_ends) = read_tokens(tokens), read_tokens(logits)
        self.target_ids = self._target.values
        self.index = self.positions()

    def longest_chunk(self) -> range:
        longest = int(np.argmax(self._target.lengths()))
        return range(longest, longest + 1)

    def chunks_of(self, tokens: int) -> range:
        """The first chunks that have so many target tokens together, or nearly."""
        return range(max(1, int(np.searchsorted(self._target.offsets, tokens, side="right")) - 1))

    def length(self, chunks: range) -> int:
        """Target tokens."""
        return int(self._target.offsets[chunks.stop] - self._target.offsets[chunks.start])

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

    def reference(self, chunks: range) -> list[list[tuple[float, int]]]:
        """Neighbouring chunks, as if they were one sequence, the straightforward way."""
        first = int(self._source.offsets[chunks.start])
        source_pieces, target_pieces = (
            [table.token_bytes[token] or b"" for row in chunks for token in tokens.row(row).tolist()]
            for table, tokens in ((self._worker.source.table, self._source), (self._worker.target.table, self._target))
        )
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
