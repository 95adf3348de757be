"""The chunks of one split as samples: the target's tokens and every candidate's aligned shards, joined by key.

`train.data.block_order` says which come when, `train.data.loader` makes the batches of each step of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.storage import join
from fusionx.contract.shards.codec import (
    Distributions,
    probabilities,
    read_context,
    read_distributions,
    read_tokens,
)
from fusionx.contract.shards.manifest import Manifest, read_manifest
from fusionx.contract.shards.parts import PartEntry, Ragged, match_rows, read_part
from fusionx.train.data.block_order import WINDOW_PARTS, BlockOrder, first_share, one_chunk_each, packed
from fusionx.train.data.conversations import read_together, regrouped

_READERS = 8
"""Parts whose lengths are read at a time: a store answers slowly, but many at once."""


@dataclass(frozen=True)
class Sample:
    """One chunk.

    input_ids: int32 [L]. ends: int32 [L]. ids: int32 [L, M, k], -1 fills up. probs: float32 [L, M, k], what they miss
    to 1 is the tail as the source gave it and what the set's k cuts off; without one, k is the largest of the
    candidates'. label_probs: float32 [L, M], the stored probability of the next token, whatever k is; NaN where it is
    not stored. status: uint8 [L, M]. nll_per_byte: float32 [M], nats per byte, NaN where a candidate scored no byte of
    the chunk (it is one token for its tokenizer); M is 0 for a stream without candidates. end_id: the token that stands
    behind the chunk where its document ends. context: int32 [C], of a chat what stands before `input_ids`: read by the
    target, neither predicted nor taught.
    """

    key: tuple[int, int]
    domain: str
    input_ids: np.ndarray
    ends: np.ndarray
    ids: np.ndarray
    probs: np.ndarray
    label_probs: np.ndarray
    status: np.ndarray
    nll_per_byte: np.ndarray
    end_id: int | None = None
    context: np.ndarray = field(default_factory=partial(np.zeros, 0, np.int32))

    @property
    def read_ids(self) -> np.ndarray:
        """What the target reads, int32 [C + L]."""
        return np.concatenate([self.context, self.input_ids]) if len(self.context) else self.input_ids

    @property
    def next_ids(self) -> np.ndarray:
        """What is predicted, int32: every position's next token, the last one's only where the document ends."""
        return self.input_ids[1:] if self.end_id is None else np.append(self.input_ids[1:], np.int32(self.end_id))


class ShardSet:
    """Tokens and candidates of one split, part by part.

    Parts are decoded in a thread of their own, and two windows of them are kept: the one in use and the one that
    `prefetch` brings. That is about 1.6 GB per process for parts of 1 MB of text, five candidates and k = 10.

    Args:
        tokens: folder of the target's tokens. aligned: candidate id -> folder of its aligned shards; may be empty.
        k: entries of each candidate at a position; the rest joins the tail. None: all that are stored.
        end_id: what the last chunk of a document, and every answer of a chat, has as its next token; None: nothing.

    Raises:
        ConfigError: `k` is more than is stored.
        DataError: an output is missing, or the candidates do not cover the same parts.
    """

    def __init__(
        self,
        tokens: str,
        aligned: dict[str, str],
        split: str,
        k: int | None = None,
        end_id: int | None = None,
    ) -> None:
        self._end_id = end_id
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
        stored = max((manifest.config["k"] for manifest in self._manifests.values()), default=0)
        self._k = stored if k is None or not aligned else k
        if self._k > stored:
            raise ConfigError(
                "The aligned shards hold fewer entries per position than the method is to use.",
                file=next(iter(aligned.values())),
                field="k",
                found=k,
                expected=f"at most {stored}",
                remedy="lower the method's k, or raise precompute.k and run precompute and align again",
            )

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

    def order(self, seed: int, pack: int | None = None, share: float = 1) -> BlockOrder:
        """The order of this split's chunks, or of a share of them, in blocks of one chunk or of at most `pack` tokens.

        Packing needs every chunk's length, and so reads one column of all parts of the target's tokens once. The
        answers of a conversation are read as one and stay together; to know them takes these parts' ids.

        Raises:
            ConfigError: a chunk is longer than `pack`.
        """
        if self._is_chat:
            with ThreadPoolExecutor(_READERS) as readers:
                return BlockOrder(
                    first_share(list(readers.map(partial(self._chat_blocks, pack), self.parts)), share), seed
                )
        if pack is None:
            return BlockOrder(first_share([one_chunk_each(rows) for rows in self.rows], share), seed)
        with ThreadPoolExecutor(_READERS) as readers:
            lengths = readers.map(partial(self._lengths, pack), self.parts)
            return BlockOrder(first_share([packed(found, pack) for found in lengths], share), seed)

    def sample(self, part: int, row: int) -> Sample:
        return self._part(part).result().sample(row)

    def prefetch(self, parts: Iterable[int]) -> None:
        """Begins to read `parts`, unless they are there, and does not wait. Their errors wait for `sample`."""
        for part in parts:
            self._part(part)

    def __getstate__(self) -> dict[str, Any]:
        """What crosses to another process: neither thread nor parts."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_part", "_reader")}

    @cached_property
    def _reader(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="parts")

    @cached_property
    def _part(self) -> Callable[[int], Future[_LoadedPart]]:
        return lru_cache(maxsize=2 * WINDOW_PARTS)(lambda part: self._reader.submit(self._load, self.parts[part]))

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

    @property
    def _is_chat(self) -> bool:
        return "chat" in self._tokens.identity

    def _chat_blocks(self, pack: int | None, entry: PartEntry) -> Ragged:
        """A part's blocks of whole conversations."""
        path = join(self.tokens, entry.name)
        table, _ = read_part(path, "tokens", sha256=entry.sha256)
        ids, context = read_tokens(table)[0], read_context(table)
        assert context is not None
        rows = [np.concatenate([context.row(row), ids.row(row)]) for row in range(len(ids))]
        together = read_together(rows, context.lengths())
        if pack is None:
            return together
        lengths = np.array([len(rows[row]) for row in together.values[together.offsets[1:] - 1]], np.int64)
        self._refuse_longer(lengths, pack, path)
        return regrouped(packed(lengths, pack), together)

    def _lengths(self, pack: int, entry: PartEntry) -> np.ndarray:
        """Tokens of every row of a part; reads the narrowest of its columns that has them."""
        path = join(self.tokens, entry.name)
        table, _ = read_part(path, "tokens", columns=["ends"], sha256=entry.sha256)
        lengths = Ragged.from_column(table.column("ends")).lengths()
        self._refuse_longer(lengths, pack, path)
        return lengths

    @staticmethod
    def _refuse_longer(lengths: np.ndarray, pack: int, path: str) -> None:
        if lengths.max(initial=0) > pack:
            raise ConfigError(
                "A chunk does not fit into a block.",
                file=path,
                field="optimizer.pack",
                found=pack,
                expected=f"at least {lengths.max()}, the tokens of row {lengths.argmax()}",
                remedy="set optimizer.pack to the run's block size, or cut the corpus into shorter chunks",
            )

    def _load(self, entry: PartEntry) -> _LoadedPart:
        path = join(self.tokens, entry.name)
        tokens, _ = read_part(path, "tokens", sha256=entry.sha256)
        input_ids, ends = read_tokens(tokens)
        return _LoadedPart(
            keys=list(zip(tokens.column("doc_id").to_pylist(), tokens.column("chunk").to_pylist(), strict=True)),
            domains=tokens.column("domain").to_pylist(),
            input_ids=input_ids,
            ends=ends,
            candidates=[self._load_candidate(name, entry.name, tokens, path) for name in self.aligned],
            k=self._k,
            end_id=self._end_id,
            context=read_context(tokens),
        )

    def _load_candidate(self, name: str, part: str, tokens: pa.Table, tokens_path: str) -> _Candidate:
        entry = next(found for found in self._manifests[name].parts if found.name == part)
        path = join(self.aligned[name], part)
        table, _ = read_part(path, "aligned", sha256=entry.sha256)
        table = match_rows(tokens, table, tokens_path, path)
        covered = table.column("nll_bytes").to_numpy()
        nll = table.column("nll").to_numpy()
        nll_per_byte = np.where(covered > 0, nll / np.maximum(covered, 1), np.nan).astype(np.float32)
        return _Candidate(read_distributions(table), Ragged.from_column(table.column("status")), nll_per_byte)


_NOTHING_SAID = (np.zeros(0),) * 5


@dataclass(frozen=True)
class _Candidate:
    """One candidate's columns of one part."""

    distributions: Distributions
    status: Ragged
    nll_per_byte: np.ndarray

    def row(self, row: int, k: int, next_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids int32 [L, k] and probs float32 [L, k] of one chunk; entries are stored in descending order. And
        label_probs float32 [L]."""
        said = self.distributions[self.status.offsets[row] : self.status.offsets[row + 1]]
        ids, logprobs = said.padded(max(k, said.k))
        probs = probabilities(logprobs, said.tail)
        is_label = ids[: len(next_ids)] == next_ids[:, None]
        stored = np.append(is_label.any(axis=1), np.zeros(len(ids) - len(is_label), bool))
        label_probs = np.full(len(ids), np.nan, np.float32)
        label_probs[stored] = probs[: len(next_ids)][is_label]
        return ids[:, :k], probs[:, :k], label_probs


@dataclass(frozen=True)
class _LoadedPart:
    """One part's columns, tokens and candidates row by row."""

    keys: list[tuple[int, int]]
    domains: list[str]
    input_ids: Ragged
    ends: Ragged
    candidates: list[_Candidate]
    k: int
    end_id: int | None
    context: Ragged | None

    def sample(self, row: int) -> Sample:
        input_ids = self.input_ids.row(row)
        # A document's chunks lie in one part, one after another.
        goes_on = row + 1 < len(self.keys) and self.keys[row + 1][0] == self.keys[row][0] and self.context is None
        end_id = None if goes_on or not len(input_ids) else self.end_id
        ends = self.ends.row(row)
        bare = Sample(self.keys[row], self.domains[row], input_ids, ends, *_NOTHING_SAID, end_id=end_id)
        if self.context is not None:
            bare = replace(bare, context=self.context.row(row))
        shape = (len(input_ids), len(self.candidates))
        ids, probs = np.empty((*shape, self.k), np.int32), np.empty((*shape, self.k), np.float32)
        label_probs = np.empty(shape, np.float32)
        status, nll_per_byte = np.empty(shape, np.uint8), np.empty(shape[1], np.float32)
        for j, candidate in enumerate(self.candidates):
            ids[:, j], probs[:, j], label_probs[:, j] = candidate.row(row, self.k, bare.next_ids)
            status[:, j], nll_per_byte[j] = candidate.status.row(row), candidate.nll_per_byte[row]
        return replace(bare, ids=ids, probs=probs, label_probs=label_probs, status=status, nll_per_byte=nll_per_byte)
