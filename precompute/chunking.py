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
_LEAST_FILL = 0.75
"""A boundary counts when it fills at least this share of the block; else the next finer kind is tried."""

_SEPARATORS = ("\n\n", "\n", " ")
_ZERO_WIDTH_JOINER = "\u200d"


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
        if limit < len(piece):
            break
        if start + len(piece) == len(text):
            return len(piece)
        window *= 2  # the whole window fits: look further
    # Cutting changes the tokens before the cut, so that the shortened piece may need one more: then cut shorter.
    while limit > 0:
        length = _boundary(piece, limit)
        if all(len(ends(piece[:length])) <= block_size for ends in tokenizers):
            return length
        limit = min(length - 1, int(length * 0.95))
    raise ValueError(f"the character {piece[0]!r} does not fit a block of {block_size} tokens")


def _fitting(piece: str, tokenizer: Ends, block_size: int) -> int:
    """The most leading characters whose tokens fit, as the encoding of the whole piece suggests.

    All of them only if the piece fits as it is: where tokens share a place, the last that fits may end where the piece
    ends, although more tokens follow.
    """
    ends = tokenizer(piece)
    if len(ends) <= block_size:
        return len(piece)
    return min(len(piece.encode()[: ends[block_size - 1]].decode(errors="ignore")), len(piece) - 1)


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
    """Whether a cut would part what people see as one character (the common rules of Unicode's UAX 29)."""
    if cut >= len(piece):
        return False
    before, after = piece[cut - 1], piece[cut]
    return (
        unicodedata.category(after) in ("Mn", "Mc", "Me")  # accents, vowel signs, variation selectors
        or after == _ZERO_WIDTH_JOINER
        or before == _ZERO_WIDTH_JOINER
        or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= after <= "\U000e007f"  # tags of regional flags
        or (before == "\r" and after == "\n")
        or (_is_regional(before) and _is_regional(after) and _regionals_before(piece, cut) % 2 == 1)
        or (_is_jamo(before) and "\u1160" <= after <= "\u11ff")  # a Hangul syllable spelled in letters
    )


def _is_regional(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _regionals_before(piece: str, cut: int) -> int:
    """Regional indicators right before `cut`; two make a flag."""
    start = cut
    while start > 0 and _is_regional(piece[start - 1]):
        start -= 1
    return cut - start


def _is_jamo(char: str) -> bool:
    return "\u1100" <= char <= "\u11ff" or "\uac00" <= char <= "\ud7a3"
