"""The stream of training batches: the target's tokens and every candidate's aligned shards, joined by key.

The order is a function of seed and epoch alone; the state is one number, the samples taken so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from contract.codec import Distributions, probabilities, read_distributions, read_tokens
from contract.errors import DataError
from contract.manifest import Manifest, read_manifest, verify_part
from contract.shard import Ragged, match_rows, read_part
from contract.storage import join

WINDOW_PARTS = 8
"""Rows are shuffled within windows of this many shuffled parts, which bounds the parts in memory."""


@dataclass(frozen=True)
class Sample:
    """One chunk.

    input_ids: int32 [L]. ends: int32 [L]. ids: int32 [M, L, k], -1 fills up. probs: float32 [M, L, k], what they miss
    to 1 is the tail as the source gave it. k is the largest of the candidates'. status: uint8 [M, L].
    nll_per_byte: float32 [M], nats per byte, NaN where a candidate scored no byte of the chunk (it is one token for
    its tokenizer); M is 0 for a stream without candidates.
    """

    key: tuple[int, int]
    domain: str
    input_ids: np.ndarray
    ends: np.ndarray
    ids: np.ndarray
    probs: np.ndarray
    status: np.ndarray
    nll_per_byte: np.ndarray


class ShardSet:
    """Tokens and candidates of one split, part by part.

    Args:
        tokens: folder of the target's tokens. aligned: candidate id -> folder of its aligned shards; may be empty.

    Raises:
        DataError: an output is missing, or the candidates do not cover the same parts.
    """

    def __init__(self, tokens: str, aligned: dict[str, str], split: str) -> None:
        self.tokens, self.aligned = tokens, aligned
        self._tokens = read_manifest(tokens, "tokens", "align")
        self._manifests = {name: read_manifest(folder, "aligned", "align") for name, folder in aligned.items()}
        self.parts = self._tokens.parts_of(split)
        if not sum(self.rows):
            raise DataError(
                "There is nothing to read.",
                file=tokens,
                field="split",
                found=f"{len(self.parts)} parts without a chunk",
                expected=f"chunks of '{split}'",
            )
        self._check_complete()
        self._load = lru_cache(maxsize=WINDOW_PARTS + 1)(self._load_uncached)

    @property
    def rows(self) -> list[int]:
        return [part.rows for part in self.parts]

    def digests(self) -> dict[str, str]:
        """Identity of every input, for checkpoints and reports."""
        manifests: dict[str, Manifest] = {"tokens": self._tokens, **self._manifests}
        return {name: manifest.digest for name, manifest in manifests.items()}

    @property
    def domains(self) -> set[str]:
        """The domains that this split's text has, from the parts' statistics."""
        return {domain for part in self.parts for domain in part.stats.get("domains", {})}

    def sample(self, part: int, row: int) -> Sample:
        return self._load(part).sample(row)

    def _check_complete(self) -> None:
        for name, manifest in self._manifests.items():
            missing = {part.name for part in self.parts} - {part.name for part in manifest.parts}
            if missing:
                raise DataError(
                    f"The aligned shards of '{name}' do not cover the target's tokens.",
                    file=self.aligned[name],
                    found=f"{len(missing)} parts missing, among them {min(missing)}",
                    expected=f"the {len(self.parts)} parts of {self.tokens}",
                    remedy="run `fusionx precompute` and `fusionx align` for this source",
                )

    def _load_uncached(self, part: int) -> _LoadedPart:
        entry = self.parts[part]
        verify_part(self.tokens, entry, "align")
        path = join(self.tokens, entry.name)
        tokens, _ = read_part(path, "tokens")
        input_ids, ends = read_tokens(tokens)
        return _LoadedPart(
            keys=list(zip(tokens.column("doc_id").to_pylist(), tokens.column("chunk").to_pylist(), strict=True)),
            domains=tokens.column("domain").to_pylist(),
            input_ids=input_ids,
            ends=ends,
            candidates=[self._load_candidate(name, entry.name, tokens, path) for name in self.aligned],
            k=max((manifest.config["k"] for manifest in self._manifests.values()), default=0),
        )

    def _load_candidate(self, name: str, part: str, tokens: pa.Table, tokens_path: str) -> _Candidate:
        folder = self.aligned[name]
        entry = next(found for found in self._manifests[name].parts if found.name == part)
        verify_part(folder, entry, "align")
        path = join(folder, part)
        table, _ = read_part(path, "aligned")
        table = match_rows(tokens, table, tokens_path, path)
        covered = table.column("nll_bytes").to_numpy()
        nll = table.column("nll").to_numpy()
        nll_per_byte = np.where(covered > 0, nll / np.maximum(covered, 1), np.nan).astype(np.float32)
        return _Candidate(read_distributions(table), Ragged.from_column(table.column("status")), nll_per_byte)


@dataclass(frozen=True)
class _Candidate:
    """One candidate's columns of one part."""

    distributions: Distributions
    status: Ragged
    nll_per_byte: np.ndarray

    def row(self, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 [L, k] and probs float32 [L, k] of one chunk."""
        said = self.distributions[self.status.offsets[row] : self.status.offsets[row + 1]]
        ids, logprobs = said.padded(k)
        return ids, probabilities(logprobs, said.tail)


@dataclass(frozen=True)
class _LoadedPart:
    """One part's columns, tokens and candidates row by row."""

    keys: list[tuple[int, int]]
    domains: list[str]
    input_ids: Ragged
    ends: Ragged
    candidates: list[_Candidate]
    k: int

    def sample(self, row: int) -> Sample:
        tokens = (self.keys[row], self.domains[row], self.input_ids.row(row), self.ends.row(row))
        if not self.candidates:
            none = np.zeros((0, 0, 0))
            return Sample(
                *tokens, none.astype(np.int32), none.astype(np.float32), np.zeros((0, 0), np.uint8), np.zeros(0)
            )
        ids, probs = zip(*(candidate.row(row, self.k) for candidate in self.candidates), strict=True)
        return Sample(
            *tokens,
            np.stack(ids),
            np.stack(probs),
            np.stack([candidate.status.row(row) for candidate in self.candidates]),
            np.stack([candidate.nll_per_byte[row] for candidate in self.candidates]),
        )


def epoch_order(rows: Sequence[int], seed: int, epoch: int) -> np.ndarray:
    """(part, row) of every sample in one epoch's order, int64 [samples, 2]: shuffled parts, then windows of rows."""
    rng = np.random.default_rng([seed, epoch])
    parts = rng.permutation(len(rows))
    windows = []
    for start in range(0, len(parts), WINDOW_PARTS):
        window = [(part, row) for part in parts[start : start + WINDOW_PARTS] for row in range(rows[part])]
        windows.append(rng.permutation(np.array(window, dtype=np.int64).reshape(-1, 2)))
    return np.concatenate(windows)


class BatchStream:
    """Endless batches of samples, epoch after epoch; a batch may reach into the next epoch.

    `taken` (samples so far) is the whole state: setting it resumes exactly there.
    """

    def __init__(self, shards: ShardSet, batch_size: int, seed: int, taken: int = 0) -> None:
        self._shards = shards
        self._batch_size = batch_size
        self._seed = seed
        self.taken = taken
        self.samples_per_epoch = sum(shards.rows)

    def __iter__(self) -> Iterator[list[Sample]]:
        while True:
            yield [self._next() for _ in range(self._batch_size)]

    def _next(self) -> Sample:
        epoch, position = divmod(self.taken, self.samples_per_epoch)
        part, row = self._order(epoch)[position]
        self.taken += 1
        return self._shards.sample(int(part), int(row))

    @lru_cache(maxsize=2)  # noqa: B019  # one stream lives as long as its trainer
    def _order(self, epoch: int) -> np.ndarray:
        return epoch_order(self._shards.rows, self._seed, epoch)
