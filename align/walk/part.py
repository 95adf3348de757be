"""A part's walk: from its token and distribution columns to the target's distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusionx.align.half import half_logs, probability_of_bits
from fusionx.align.walk.kernel import questions, walk
from fusionx.align.walk.lexicon import Lexicon
from fusionx.align.walk.state import LEAST, NO_TOKEN, NOT_MET, OwnPath, Said, Scratch, Tokens, Trail, Walked
from fusionx.contract.jit import compiled
from fusionx.contract.shards.codec import Distributions
from fusionx.contract.shards.parts import Ragged


@dataclass(frozen=True)
class WalkedPart:
    """L target positions over E entries, best first. ids: int32 [E]. probs: float32 [E]. counts: uint16 [L]. label:
    float64 [L], probability of the next token, NaN where nothing is known. status: uint8 [L], a `Status`."""

    ids: npt.NDArray[np.int32]
    probs: npt.NDArray[np.float32]
    counts: npt.NDArray[np.uint16]
    label: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint8]

    def stored(self) -> Distributions:
        """As shards keep them: what the entries lack to 1 is the tail."""
        starts = np.append(0, np.cumsum(self.counts, dtype=np.int64))
        sums = np.append(0.0, np.cumsum(self.probs, dtype=np.float64))
        tail = np.clip(1.0 - (sums[starts[1:]] - sums[starts[:-1]]), 0.0, 1.0)
        return Distributions(self.ids, half_logs(self.probs), self.counts, tail.astype(np.float16))


class PartWalk:
    """The walk over one part's rows; the fill-in can be changed without doing the rest again.

    Args:
        target_ids, target_ends, source_ids, source_ends: int32, row by row; the rows of both are the same texts.
        said: the source's distributions at its positions. token_nll: float32 [S], nats, of its next tokens.
    """

    def __init__(
        self,
        lexicon: Lexicon,
        target_ids: Ragged,
        target_ends: Ragged,
        source_ids: Ragged,
        source_ends: Ragged,
        said: Distributions,
        token_nll: npt.NDArray[np.floating],
    ) -> None:
        self._tables = lexicon.tables
        self._target, self._source = _tokens(target_ids, target_ends), _tokens(source_ids, source_ends)
        self._said = spoken(said, len(lexicon.tables.source_lengths))
        self._own = _own_path(self._said, self._source, token_nll)
        keys = np.empty(len(self._said.ids), np.int64)  # of which little is used
        asked = questions(self._target, self._source, self._said, self._own, self._tables, keys)
        lexicon.tidy()
        self._own.leads[self._own.leads == NO_TOKEN] = lexicon.first_continuations(keys[:asked])
        self._known = lexicon.continuations

    def distributions(self, fill: Said | None, k: int, trail: Trail | None = None) -> WalkedPart:
        """What the source says of every next target token, the k largest and always the text's own.

        Args:
            fill: what decides where the source does not: the target's own distributions at its positions (`spoken`),
                None for one that knows nothing.
            trail: takes down where mass goes, as far as it has room.
        """
        return self._walk(fill, k, trail or Trail.of(0), np.zeros(0, np.int32))

    def foretold(self, fill: Said | None) -> npt.NDArray[np.int32]:
        """The likeliest next token without a look at how the text goes on, [L], -1 for none.

        The walk follows the text's own source tokens. Here the source's own next token is an entry like any other. Only
        where source and target cut the text still comes from the whole of it.
        """
        tokens = np.full(len(self._target.ids), -1, np.int32)
        self._walk(fill, 1, Trail.of(0), tokens)
        return tokens

    def _walk(self, fill: Said | None, k: int, trail: Trail, foretold: npt.NDArray[np.int32]) -> WalkedPart:
        positions = len(self._target.ids)
        if fill is None:
            nothing = np.zeros(0, np.uint32)
            starts, ones = np.zeros(positions + 1, np.int64), np.ones(positions, np.float32)
            fill = Said(starts, nothing, np.zeros(0, np.float32), ones)
        walked = Walked(
            np.empty(positions * k, np.int32),
            np.empty(positions * k, np.float32),
            np.zeros(positions, np.uint16),
            np.full(positions, np.nan),
            np.zeros(positions, np.uint8),
        )
        others = self._own._replace(entry=np.full_like(self._own.entry, -1)) if len(foretold) else self._own
        inputs = (self._target, self._source, self._said, self._own, others, fill, self._tables, self._known)
        size = walk(*inputs, k, trail, walked, foretold, Scratch.of(self._said, fill, self._tables, k))
        return WalkedPart(walked.ids[:size], walked.probs[:size], walked.counts, walked.label, walked.status)


def spoken(distributions: Distributions, vocab_size: int) -> Said:
    """Distributions as the kernel reads them; ids of a head larger than the vocabulary are left to the tail."""
    bits, tail = distributions.logprobs.view(np.uint16), distributions.tail.astype(np.float32)
    probs = _scaled(distributions.starts, bits, tail, probability_of_bits())
    starts, ids = distributions.starts, distributions.ids
    outside = (ids < 0) | (ids >= vocab_size)
    if outside.any():
        position = np.repeat(np.arange(len(tail)), distributions.counts)[outside]
        tail = tail + np.bincount(position, probs[outside], len(tail)).astype(np.float32)
        starts = starts - np.append(0, np.cumsum(outside))[starts]
        ids, probs = ids[~outside], probs[~outside]
    return Said(starts, ids.view(np.uint32), probs, tail)


def _tokens(ids: Ragged, ends: Ragged) -> Tokens:
    return Tokens(ids.values.astype(np.uint32), ends.values.astype(np.int32), ids.offsets.astype(np.int64))


@compiled
def _scaled(starts, bits, tail, probability):  # type: ignore[no-untyped-def]
    """Every entry's probability, scaled so that a position's entries and its tail sum to 1: float32 [E]."""
    probs = np.empty(len(bits), np.float32)
    for position in range(len(tail)):
        stored = 0.0
        for entry in range(starts[position], starts[position + 1]):
            probs[entry] = probability[bits[entry]]
            stored += probs[entry]
        scale = (1.0 - tail[position]) / stored if stored > 0.0 else 0.0
        for entry in range(starts[position], starts[position + 1]):
            probs[entry] *= scale
    return probs


def _own_path(said: Said, source: Tokens, token_nll: npt.NDArray[np.floating]) -> OwnPath:
    size = len(source.ids)
    own = OwnPath(
        np.maximum(np.exp(-token_nll.astype(np.float64)), LEAST),
        np.full(size, -1, np.int64),
        said.tail.copy(),
        np.full(len(said.ids), NOT_MET, np.int32),
    )
    _find_own(said, source, own)
    return own


@compiled
def _find_own(said, source, own):  # type: ignore[no-untyped-def]
    """The own next token is its entry where it has one; else its mass is part of the tail."""
    for row in range(len(source.rows) - 1):
        for position in range(source.rows[row], source.rows[row + 1] - 1):
            for entry in range(said.starts[position], said.starts[position + 1]):
                if said.ids[entry] == source.ids[position + 1]:
                    own.entry[position] = entry
                    own.prob[position] = max(said.probs[entry], LEAST)
                    break
            else:
                own.tail[position] = max(said.tail[position] - own.prob[position], 0.0)
