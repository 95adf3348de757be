"""Edit distances between tokens, as both the vocabulary map and the position alignment define them.

Two tokens are compared as Unicode text where both are valid UTF-8, and byte by byte where either is not. A distance
therefore counts characters or bytes; a byte-wise distance is never smaller than the character-wise one would be.
"""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein


def text_of(token: bytes) -> str | None:
    """The token as text, None where it is not valid UTF-8."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return None


def bytes_as_text(token: bytes) -> str:
    """One character per byte, so that a distance over text counts bytes."""
    return token.decode("latin-1")


def token_distance(first: bytes, second: bytes) -> int:
    """Levenshtein distance (unit costs) in characters, or in bytes where either token is no valid UTF-8."""
    first_text, second_text = text_of(first), text_of(second)
    if first_text is None or second_text is None:
        return Levenshtein.distance(bytes_as_text(first), bytes_as_text(second))
    return Levenshtein.distance(first_text, second_text)
