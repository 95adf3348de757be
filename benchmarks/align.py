"""Alignment of one source's shards with the target: the walk, and MinED against the straightforward way.

Real shards: one of the demo's models over the demo's training corpus, brought to the demo's target. The reference does
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
from fusionx.align.config import AlignConfig, AlignMethod
from fusionx.align.positions import align_positions
from fusionx.align.projection import project
from fusionx.align.tokens_stage import TokensStage
from fusionx.align.vocabulary.edit_distance import token_distance
from fusionx.align.vocabulary.vocab_map import VocabMap
from fusionx.align.walk.lexicon import Lexicon
from fusionx.align.walk.part import PartWalk, spoken
from fusionx.benchmarks.measuring.figure import Figure, cpu_seconds
from fusionx.contract.errors import DataError
from fusionx.contract.shards.codec import read_distributions, read_token_nll, read_tokens
from fusionx.contract.shards.manifest import Manifest, build_manifest, write_manifest
from fusionx.contract.shards.parts import read_part
from fusionx.contract.stage import Stage, Unit
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig, Split
from fusionx.precompute.logits.logits_stage import LogitsStage

RANKS = (10, 32, 64)
"""The first is also that of the published code, with which `mined` is compared."""
DATA = "data/demo"
SOURCE, TARGET = "coder", "target"
SPLITS: list[Split] = ["train", "validation"]
"""What is timed is a part of the first; the other is there because alignment is judged on it, which takes its time."""
BLOCK = 256
LONG = 2048
"""Tokens of the paper's block, which the published figures are of."""
ROUNDS = 5


def figures() -> Iterator[Figure]:
    """Target positions per CPU second of one core, and bytes per position of what is written, for every k in `RANKS`.

    Raises:
        DataError: the demo's models or corpus are not there.
    """
    import torch

    if not Path(DATA, "models", SOURCE).is_dir():
        raise DataError("The demo's models are missing.", file=f"{DATA}/models", remedy="run `make demo-inputs`")
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        target, source = (ModelConfig(id=name, path=f"{DATA}/models/{name}") for name in (TARGET, SOURCE))
        corpus = CorpusConfig(path=f"{DATA}/corpus", splits=SPLITS)
        chunks, tokens = f"{folder}/chunks", f"{folder}/tokens"
        make(ChunkStage(corpus, ChunkConfig(block_size=BLOCK, part_bytes=1_000_000), [target, source], chunks))
        make(TokensStage(TARGET, target.path, None, list(SPLITS), chunks, tokens))
        for k in RANKS:
            logits = {model.id: f"{folder}/{model.id}-{k}" for model in (target, source)}
            for model in (target, source):
                make(LogitsStage(model, PrecomputeConfig(k=k, splits=SPLITS), chunks, logits[model.id]))
            shards = (logits[SOURCE], logits[TARGET], tokens)
            yield from _of_walk(k, aligned_stage(source, target, "walk", *shards))
            if k == RANKS[0]:
                yield from _of_mined(k, aligned_stage(source, target, "mined", *shards))


def aligned_stage(
    source: ModelConfig, target: ModelConfig, method: AlignMethod, logits: str, target_logits: str, tokens: str
) -> AlignedStage:
    """Of two model folders and their shards; what it makes lies beside the shards."""
    return AlignedStage(
        source=source.id,
        source_path=source.path,
        source_revision=None,
        target=target.id,
        target_path=target.path,
        target_revision=None,
        method=method,
        config=AlignConfig(),
        logits=logits,
        target_logits=target_logits,
        tokens=tokens,
        output=f"{logits}-{method}-{target.id}",
    )


def make(stage: Stage) -> Manifest:
    """Runs a stage in this process, unit after unit."""
    units, worker = list(stage.units()), stage.worker()
    provenance = stage.provenance(units[0])
    entries = [worker(unit) for unit in units]
    manifest = build_manifest(stage.kind, provenance.config, provenance.identity, entries)
    write_manifest(stage.output, manifest)
    return manifest


def _of_walk(k: int, stage: AlignedStage) -> Iterator[Figure]:
    unit = stage.units()[0]
    warm, fresh = _worker(stage), _worker(stage)
    warm(unit)  # compiles the kernels, and asks the tokenizers what this part needs
    part = _Part(warm, unit)
    walk, fill = part.walk(), spoken(part.target, warm.target.vocab_size)
    first_seconds, entry = cpu_seconds(partial(fresh, unit), 1)
    seconds = {
        "kernel": cpu_seconds(partial(walk.distributions, fill, k), ROUNDS)[0],
        "prepared": cpu_seconds(part.walk, ROUNDS)[0],
        "parquet": cpu_seconds(partial(warm, unit), ROUNDS)[0],
    }
    for name, taken in seconds.items():
        yield Figure("align", f"walk k{k}", f"{name}_positions_per_s", part.size / taken, "positions/s", n=ROUNDS)
    # Of a run's parts, the first knows nothing of what the tokenizers will answer.
    yield Figure("align", f"walk k{k}", "first_parquet_positions_per_s", part.size / first_seconds, "positions/s")
    yield Figure("align", f"walk k{k}", "bytes_per_position", entry.bytes / part.size, "bytes")


def _of_mined(k: int, stage: AlignedStage) -> Iterator[Figure]:
    unit, worker = stage.units()[0], _worker(stage)
    worker(unit)
    part, case = _Part(worker, unit), f"mined k{k}"
    chunk, block = part.longest_chunk(), part.chunks_of(LONG)
    works: dict[str, Callable[[], object]] = {
        "kernel": partial(project, part.source, part.positions(), part.vocab_map, k),
        "matched": part.positions,
        "parquet": partial(worker, unit),
        "reference": partial(part.reference, chunk),
    }
    seconds = {name: cpu_seconds(work, ROUNDS)[0] for name, work in works.items()}
    once, _ = cpu_seconds(partial(part.reference, block), 1)
    long_rate = part.length(block) / once
    against = f"one dynamic program over {part.length(block)} tokens, and dictionaries"
    for name in ("kernel", "matched", "parquet"):
        rate = part.size / seconds[name]
        yield Figure("align", case, f"{name}_positions_per_s", rate, "positions/s", against, rate / long_rate, ROUNDS)
    yield Figure("align", case, "reference_positions_per_s", long_rate, "positions/s")
    yield Figure("align", case, "reference_length", part.length(block), "tokens")
    chunk_rate = part.length(chunk) / seconds["reference"]
    yield Figure("align", case, "reference_chunk_positions_per_s", chunk_rate, "positions/s", n=ROUNDS)
    yield Figure("align", case, "reference_chunk_length", part.length(chunk), "tokens")


def _worker(stage: AlignedStage) -> AlignWorker:
    worker = stage.worker()
    assert isinstance(worker, AlignWorker)
    return worker


class _Part:
    """One unit's inputs in memory; its rows are the same chunks in the same order."""

    def __init__(self, worker: AlignWorker, unit: Unit) -> None:
        tables = {
            kind: read_part(path, "tokens" if kind == "tokens" else "logits")[0] for kind, path in unit.inputs.items()
        }
        self._worker = worker
        self._target, self._source = read_tokens(tables["tokens"]), read_tokens(tables["logits"])
        self.source = read_distributions(tables["logits"])
        self._token_nll = read_token_nll(tables["logits"], self.source)
        if "target_logits" in tables:
            self.target = read_distributions(tables["target_logits"])
        self.size = len(self._target[0].values)

    def walk(self) -> PartWalk:
        """All of the walk that does not depend on the fill-in."""
        assert isinstance(self._worker.means, Lexicon)
        return PartWalk(self._worker.means, *self._target, *self._source, self.source, self._token_nll)

    @property
    def vocab_map(self) -> VocabMap:
        assert isinstance(self._worker.means, VocabMap)
        return self._worker.means

    def longest_chunk(self) -> range:
        longest = int(np.argmax(self._target[0].lengths()))
        return range(longest, longest + 1)

    def chunks_of(self, tokens: int) -> range:
        """The first chunks that have so many target tokens together, or nearly."""
        return range(max(1, int(np.searchsorted(self._target[0].offsets, tokens, side="right")) - 1))

    def length(self, chunks: range) -> int:
        """Target tokens."""
        return int(self._target[0].offsets[chunks.stop] - self._target[0].offsets[chunks.start])

    def positions(self) -> np.ndarray:
        """Source positions of all the part's target positions, as the stage finds them."""
        found = []
        (target_ids, target_ends), (source_ids, source_ends) = self._target, self._source
        for row in range(len(target_ids)):
            index, _ = align_positions(
                source_ends.row(row),
                source_ids.row(row),
                target_ends.row(row),
                target_ids.row(row),
                self._worker.source.table,
                self._worker.target.table,
                self.vocab_map,
            )
            found.append(np.where(index >= 0, index + source_ids.offsets[row], -1))
        return np.concatenate(found)

    def reference(self, chunks: range) -> list[list[tuple[float, int]]]:
        """Neighbouring chunks, as if they were one sequence, the straightforward way."""
        first = int(self._source[0].offsets[chunks.start])
        source_pieces, target_pieces = (
            [table.token_bytes[token] or b"" for row in chunks for token in tokens.row(row).tolist()]
            for table, tokens in (
                (self._worker.source.table, self._source[0]),
                (self._worker.target.table, self._target[0]),
            )
        )
        ids, logprobs = self.source.padded()
        mapped = self.vocab_map.target_ids
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
