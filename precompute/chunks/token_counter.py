"""Counting tokens without encoding the same words again: pieces of text, their token counts remembered.

A text is taken apart where every tokenizer provably parts two characters (`precompute.chunks.split_points`); the tokens
of the whole are then the sum over the pieces. Most pieces of a corpus are old acquaintances, so that only the new ones
are encoded. The counts are exact (an upper bound where a tokenizer fuses unknown characters), never estimates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fusionx.contract.tokens.encoder import Encoder
from fusionx.precompute.chunks.split_points import ANCHOR, Pairs, classes_of

LONGEST_PIECE = 256
"""Longer pieces (characters) are rarely met again and are not counted."""
UNCOUNTED = 1 << 30
"""Stands for their number of tokens: more than any block."""
_MOST_REMEMBERED = 1 << 25
"""Characters of pieces that a memory holds before it starts anew."""

Counts = npt.NDArray[np.int64]
"""Tokens under every tokenizer, int64 [tokenizers], or per piece [pieces, tokenizers]."""


class PieceCounter:
    """Counts tokens of pieces under tokenizers that all part the pairs of characters in `parted`."""

    def __init__(self, encoders: Sequence[Encoder], parted: Sequence[Pairs]) -> None:
        self._parted = np.logical_and.reduce(list(parted))
        self._inner = _Memory(encoders, ANCHOR)
        self._first = _Memory(encoders, "")

    def take_apart(self, text: str) -> CountedText:
        classes = classes_of(text)
        inner = np.flatnonzero(self._parted[classes[:-1], classes[1:]]) + 1
        places = np.concatenate([[0], inner, [len(text)]])
        borders = places.tolist()
        pieces = [text[start:end] for start, end in pairwise(borders)]
        too_long = np.flatnonzero(np.diff(places) > LONGEST_PIECE)
        for piece in too_long.tolist():
            pieces[piece] = ""
        counts = self._inner.counts(pieces)
        counts[too_long] = UNCOUNTED
        sums = np.zeros((len(places), counts.shape[1]), np.int64)
        np.cumsum(counts, axis=0, out=sums[1:])
        return CountedText(text, places, sums, self._inner, self._first)


@dataclass(frozen=True)
class CountedText:
    """A text in pieces.

    Attributes:
        places: where pieces meet, and the text's two ends, int64 [pieces + 1], in characters.
        sums: tokens of all pieces before each place, int64 [pieces + 1, tokenizers].
    """

    text: str
    places: npt.NDArray[np.int64]
    sums: npt.NDArray[np.int64]
    inner: _Memory
    first: _Memory

    def count(self, start: int, end: int) -> Counts:
        """Tokens of text[start:end] when encoded alone, BOS included."""
        head, tail = np.searchsorted(self.places, [start + 1, end + 1]) - [0, 1]  # first place > start, last <= end
        if head > tail:
            return self.first.count(self.text[start:end])
        total = self.first.count(self.text[start : self.places[head]]) + self.sums[tail] - self.sums[head]
        if self.places[tail] < end:
            total = total + self.inner.count(self.text[self.places[tail] : end])
        return total

    def reach(self, start: int, block_size: int) -> int:
        """The last place such that the text from `start` to it fits the block; `start` if none does."""
        head = int(np.searchsorted(self.places, start + 1))
        room = block_size - self.first.count(self.text[start : self.places[head]])
        if room.min() < 0:
            return start
        rows = block_size  # a piece has a token or more, but for rare exceptions
        while True:
            fits = (self.sums[head : head + rows + 1] - self.sums[head] <= room).all(axis=1)
            if not fits.all() or len(fits) <= rows:
                return int(self.places[head + np.count_nonzero(fits) - 1])
            rows *= 2


class _Memory:
    """Token counts of pieces that stand behind `anchor`, or of whole texts (BOS included) where that is empty."""

    def __init__(self, encoders: Sequence[Encoder], anchor: str) -> None:
        self._encoders = encoders
        self._anchor = anchor
        self._alone = np.array([encoder.count([anchor])[0] if anchor else 0 for encoder in encoders], np.int64)
        self._forget()

    def _forget(self) -> None:
        self._row_of: dict[str, int] = {}
        self._rows = np.zeros((1024, len(self._encoders)), np.int32)
        self._characters = 0

    def count(self, piece: str) -> Counts:
        if len(piece) > LONGEST_PIECE:
            return np.full(len(self._encoders), UNCOUNTED, np.int64)
        return self.counts([piece])[0]

    def counts(self, pieces: Sequence[str]) -> Counts:
        new = [piece for piece in dict.fromkeys(pieces) if piece not in self._row_of]
        if new:
            self._learn(new)
        rows = self._rows[np.fromiter(map(self._row_of.__getitem__, pieces), np.int64, len(pieces))]
        if self._characters > _MOST_REMEMBERED:
            self._forget()
        return rows.astype(np.int64)

    def _learn(self, pieces: list[str]) -> None:
        known = len(self._row_of)
        anchored = [self._anchor + piece for piece in pieces]
        counts = np.array([encoder.count(anchored) for encoder in self._encoders]).T - self._alone
        while known + len(pieces) > len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[known : known + len(pieces)] = counts
        self._row_of.update(zip(pieces, range(known, known + len(pieces)), strict=True))
        self._characters += sum(map(len, pieces))
