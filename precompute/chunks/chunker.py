"""Cutting documents so that every chunk fits the block under every tokenizer of the run.

Nothing is lost: a document's chunks concatenate to it exactly. A cut falls at a paragraph, else a line, else a word,
else between two user-perceived characters (UAX 29), and never inside a character.

Tokenizers whose tokens can be counted piece by piece (`precompute.chunks.token_counter`) need no encoding of whole
texts. For the others a chunk is guessed from the density of the last one and encoded as it would stand: the guess is
the proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import regex

from fusionx.contract.tokens.encoder import Encoder
from fusionx.precompute.chunks.split_points import split_points
from fusionx.precompute.chunks.token_counter import CountedText, PieceCounter

Ends = Callable[[str], np.ndarray]
"""A tokenizer as the chunker sees it: text -> end byte offset of each token (BOS included), int32 [T]."""

_LEAST_FILL = 0.75
"""A boundary counts when it fills at least this share of what fits; else the next finer kind is tried."""
_AIM = 0.97
"""Share of the block that a guess aims at, so that most guesses fit."""
_CHARS_PER_TOKEN = 3.5
"""The density of which the first guess of a document is made."""
_STRETCH = 1 << 20
"""Characters of a long document that are taken apart at once."""

_SEPARATORS = ("\n\n", "\r\n\r\n", "\n", " ")
_GRAPHEME = regex.compile(r"\X")


def chunker_of(encoders: Sequence[Encoder], block_size: int) -> Chunker:
    """A chunker for these tokenizers; those that allow it are counted, the others are asked."""
    parted = [split_points(encoder) for encoder in encoders]
    counted = [(encoder, pairs) for encoder, pairs in zip(encoders, parted, strict=True) if pairs is not None]
    counter = PieceCounter(*zip(*counted, strict=True)) if counted else None
    asked = [_ends_of(encoder) for encoder, pairs in zip(encoders, parted, strict=True) if pairs is None]
    return Chunker(block_size, asked, counter, [_ends_of(encoder) for encoder, _ in counted])


def _ends_of(encoder: Encoder) -> Ends:
    return lambda text: encoder.encode([text])[0].ends


class Chunker:
    """Cuts documents for one block size and set of tokenizers.

    Args:
        asked: tokenizers that encode every chunk.
        counter: counts the tokens of all the others.
        counted: those others; they are asked about text whose pieces are too long to be counted.
    """

    def __init__(
        self,
        block_size: int,
        asked: Sequence[Ends],
        counter: PieceCounter | None = None,
        counted: Sequence[Ends] = (),
    ) -> None:
        self._block_size = block_size
        self._asked = asked
        self._counter = counter
        self._everyone = [*asked, *counted]

    def cut(self, text: str) -> list[str]:
        """Chunks of `text`, in order; each encodes to at most `block_size` tokens under every tokenizer.

        Raises:
            ValueError: a single character does not fit the block, or the text holds a lone surrogate.
        """
        chunks: list[str] = []
        start, size = 0, max(_STRETCH, 64 * self._block_size)
        while start < len(text):
            stretch = list(self._cut_stretch(text[start : start + size]))
            if start + size < len(text) and len(stretch) > 1:
                stretch.pop()  # it was cut off where the stretch ends, not where it should
            chunks += stretch
            start += sum(map(len, stretch))
        return chunks

    def _cut_stretch(self, text: str) -> Iterator[str]:
        counted = self._counter.take_apart(text) if self._counter is not None else None
        density = _CHARS_PER_TOKEN
        start = 0
        while start < len(text):
            end = self._counted_cut(text, start, counted) if counted is not None else None
            if end is None or self._asked:
                asked = self._everyone if end is None else self._asked
                end, tokens = self._asked_cut(text, start, len(text) if end is None else end, asked, density)
                density = (end - start) / max(tokens, 1)
            yield text[start:end]
            start = end

    def _counted_cut(self, text: str, start: int, counted: CountedText) -> int | None:
        """End of the next chunk by counting; None where a piece too long to be counted leaves the chunk too short."""
        reach = counted.reach(start, self._block_size)
        if reach == len(text):
            return reach
        if reach == start or counted.count(start, reach).max() < _LEAST_FILL * self._block_size:
            return None
        limit = reach
        while limit > start:
            end = boundary(text, start, limit)
            if end == reach or counted.count(start, end).max() <= self._block_size:
                return end
            limit = end - 1
        return reach

    def _asked_cut(self, text: str, start: int, most: int, asked: Sequence[Ends], density: float) -> tuple[int, int]:
        """End of the next chunk, at most `most`, and the largest number of its tokens."""
        limit = min(most, start + max(1, int(_AIM * self._block_size * density)))
        failures = 0
        short = (start, 0)
        while True:
            end = limit if limit == most == len(text) else boundary(text, start, limit)
            # The same end again: what follows is one character that goes on beyond the limit. Is there room for it?
            if end == short[0] and self._ask(text[start:limit], asked)[0] > self._block_size:
                return short
            tokens, fitting = self._ask(text[start:end], asked)
            if tokens > self._block_size:
                if end - start == 1:
                    raise ValueError(f"the character {text[start]!r} does not fit a block of {self._block_size} tokens")
                # Cutting changes the tokens before the cut, so that the shortened chunk may need one more.
                fitting = min(fitting, (end - start) * (32 - failures) // 32, end - start - 1)
                most = limit = start + max(1, fitting)
                failures = min(failures + 1, 16)
            elif limit < most and tokens < _LEAST_FILL * self._block_size:
                short, density = (end, tokens), (end - start) / max(tokens, 1)
                further = max(_AIM * self._block_size * density, 1.25 * (limit - start) + 1)
                limit = min(most, start + int(further))
            else:
                return end, tokens

    def _ask(self, chunk: str, asked: Sequence[Ends]) -> tuple[int, int]:
        """The most tokens of a chunk; where they are over the block, also how many characters are likely to fit."""
        most = 0
        for ends_of in asked:
            ends = ends_of(chunk)
            most = max(most, len(ends))
            if most > self._block_size:
                fitting = len(chunk.encode()[: ends[self._block_size - 1]].decode(errors="ignore"))
                # Where many tokens share an end, it says nothing.
                return most, fitting if fitting < len(chunk) - 1 else int(_AIM * len(chunk) * self._block_size / most)
        return most, len(chunk)


def boundary(text: str, start: int, limit: int) -> int:
    """The best place to cut text[start:] at or before `limit`; beyond `start`."""
    least = start + (limit - start) * _LEAST_FILL
    for separator in _SEPARATORS:
        # A space belongs to the word after it (as tokenizers see it), a line break to the line before it.
        found = text.rfind(separator, start, limit + 1 if separator == " " else limit)
        end = found if separator == " " else found + len(separator)
        if found >= 0 and end >= least and end > start and not _inside_grapheme(text[end - 1 : end + 1]):
            return end
    end = start
    for grapheme in _GRAPHEME.finditer(text[start : limit + 1]):
        if start + grapheme.end() > limit:
            break
        end = start + grapheme.end()
    return end if end > start else limit


def _inside_grapheme(neighbours: str) -> bool:
    return len(neighbours) == 2 and _GRAPHEME.fullmatch(neighbours) is not None
