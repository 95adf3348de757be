"""Cutting documents so that every chunk fits the block under every tokenizer of the run.

Nothing is lost: a document's chunks concatenate to it exactly. A cut falls at a paragraph, else a line, else a word,
else between two user-perceived characters, and never inside a character.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

Ends = Callable[[str], np.ndarray]
"""A tokenizer as the chunker sees it: text -> end byte offset of each token (BOS included), int32 [T]."""

_CHARS_PER_TOKEN = 6
_LEAST_FILL = 0.5
"""A boundary counts when it fills at least this share of the block; else the next finer kind is tried."""

_SEPARATORS = ("\n\n", "\n", " ")
_JOINERS = "‍︎️"  # zero-width joiner and the variation selectors glue emoji together


def cut_document(text: str, tokenizers: Sequence[Ends], block_size: int) -> list[str]:
    """Chunks of `text`, in order; each encodes to at most `block_size` tokens under every tokenizer.

    Raises:
        ValueError: a single character does not fit the block.
    """
    chunks = []
    start = 0
    while start < len(text):
        length = _next_length(text, start, tokenizers, block_size)
        chunks.append(text[start : start + length])
        start += length
    return chunks


def _next_length(text: str, start: int, tokenizers: Sequence[Ends], block_size: int) -> int:
    """Characters of the next chunk."""
    window = block_size * _CHARS_PER_TOKEN
    while True:
        piece = text[start : start + window]
        limit = min(_fitting(piece, ends, block_size) for ends in tokenizers)
        if limit < len(piece) or start + len(piece) == len(text):
            break
        window *= 2  # the whole window fits: look further
    if limit == len(piece):
        return limit
    # Cutting changes the tokens before the cut, so that the shortened piece may need one more: then cut shorter.
    while limit > 0:
        length = _boundary(piece, limit)
        if all(len(ends(piece[:length])) <= block_size for ends in tokenizers):
            return length
        limit = min(length - 1, int(length * 0.95))
    raise ValueError(f"the character {piece[0]!r} does not fit a block of {block_size} tokens")


def _fitting(piece: str, tokenizer: Ends, block_size: int) -> int:
    """The most leading characters whose tokens fit, as the encoding of the whole piece suggests."""
    ends = tokenizer(piece)
    if len(ends) <= block_size:
        return len(piece)
    return len(piece.encode()[: ends[block_size - 1]].decode(errors="ignore"))


def _boundary(piece: str, limit: int) -> int:
    """The best place to cut at or before `limit` characters; at least 1."""
    for separator in _SEPARATORS:
        found = piece.rfind(separator, 0, limit)
        # A space belongs to the word after it (as tokenizers see it), a line break to the line before it.
        cut = found if separator == " " else found + len(separator)
        if found >= 0 and cut >= limit * _LEAST_FILL:
            return cut
    cut = limit
    while cut > 1 and _inside_grapheme(piece, cut):
        cut -= 1
    return cut if cut > 1 else max(1, limit)


def _inside_grapheme(piece: str, cut: int) -> bool:
    if cut >= len(piece):
        return False
    before, after = piece[cut - 1], piece[cut]
    return (
        unicodedata.combining(after) != 0
        or after in _JOINERS
        or before == _JOINERS[0]
        or (before == "\r" and after == "\n")
    )
