"""Between which characters a tokenizer provably never puts one token, read from its own serialised state.

Where two characters are *parted*, a text may be cut for counting: the tokens of the whole are the tokens of the parts.
Three things must hold. No piece of the vocabulary contains the two (so no merge crosses). No pre-tokenizer's pattern
matches across them or looks past the first (so that the splits on either side do not depend on the other). No
normalizer lets one change the other. Whatever this file does not know makes the tokenizer `None`: not countable.
"""

from __future__ import annotations

import json
import string
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from fusionx.contract.tokens.encoder import Encoder

Pairs = npt.NDArray[np.bool_]
"""bool [CLASSES, CLASSES]: a relation of a character's class to that of the next."""

LETTER = 128
"""Class of every letter beyond ASCII. The classes below are the ASCII characters themselves."""
OTHER = 129
"""Class of everything else; parted from nothing."""
CLASSES = 130

ANCHOR = "x"
"""What stands before a piece while it is counted, in place of the text before it."""

_ASCII = [chr(code) for code in range(128)]
_LETTERS = [ord(char) for char in string.ascii_letters]
_COMPOSED_BY_NFC = [*_LETTERS, *map(ord, "<=>")]
"""ASCII characters that a combining mark after them may turn into another character."""
_CONTROLS = [code for code in [*range(32), 127] if chr(code) not in "\t\n\r"]
"""Engines disagree on which of them are white space."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ESCAPE = r"\\(?:[sSdDwWrnt]|[pP]\{\w+\}|[^\w])"
_ATOM = rf"(?:{_ESCAPE}|\[\^?(?:{_ESCAPE}|[^\\\[\]&])+\]|[^\\\[\]().|*+?{{}}^$#])"
_ITEM = regex.compile(
    rf"(?P<bar>\|)|\(\?[=!](?P<ahead>{_ATOM})\)|\(\?i:(?P<words>[^()\[\]\\.*+?{{}}^$]+)\)\??"
    rf"|(?P<atom>{_ATOM})(?P<times>[*+?]|\{{\d+(?:,\d*)?\}})?[?+]?"
)
_BEYOND_ASCII = regex.compile(r"\\[pPSDWwd]|\[\^|[^\x00-\x7f]")


class _UnknownError(Exception):
    """A component whose effect is not known here."""


def classes_of(text: str) -> npt.NDArray[np.uint8]:
    """Class of every character, uint8 [characters]."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return _class_of_code()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]


@cache
def _class_of_code() -> npt.NDArray[np.uint8]:
    classes = np.full(0x110000, OTHER, np.uint8)
    classes[:128] = np.arange(128)
    classes[128:][np.char.isalpha(np.arange(128, 0x110000, dtype="<u4").view("<U1"))] = LETTER
    return classes


def split_points(encoder: Encoder) -> Pairs | None:
    """Which pairs of neighbours are parted; None where this cannot be proven for any (not only BPE, unknown parts)."""
    state = encoder.table.components
    if state is None:
        return None
    try:
        joined = _joined_by_vocabulary(state, encoder) | _joined_by_components(state)
    except _UnknownError:
        return None
    anchor = encoder.encode([ANCHOR])[0].ids[-1:].tolist()
    if not anchor or not encoder.reader.backend_tokenizer.id_to_token(anchor[0]).endswith(ANCHOR):
        return None  # an unknown anchor may be fused with an unknown character after it
    joined[_CONTROLS] = joined[:, _CONTROLS] = joined[:, LETTER:] = joined[OTHER] = True
    joined[LETTER] |= joined[_LETTERS].any(axis=0)  # normalizers turn some letters into ASCII ones
    joined |= joined[ord(ANCHOR)]
    return ~joined


def _joined_by_vocabulary(state: dict[str, Any], encoder: Encoder) -> Pairs:
    model = state["model"]
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model["type"] != "BPE" or model.get("dropout") or affixes:
        raise _UnknownError
    # Bytes that are no whole character may be any letter's.
    pieces = [piece.decode("utf-8", "replace").replace("\ufffd", "é") for piece in encoder.table.filled_bytes]
    for token in state.get("added_tokens") or []:
        if not token["special"] and (token["lstrip"] or token["rstrip"] or token["single_word"]):
            raise _UnknownError
        pieces.append(token["content"])
    joined = np.zeros((CLASSES, CLASSES), np.bool_)
    codes = classes_of("".join(pieces))
    inside = np.ones(len(codes), np.bool_)
    lasts = np.cumsum([len(piece) for piece in pieces]) - 1
    inside[lasts[lasts >= 0]] = False
    inside = inside[:-1]
    joined[codes[:-1][inside], codes[1:][inside]] = True
    return joined


def _joined_by_components(state: dict[str, Any]) -> Pairs:
    joined = np.zeros((CLASSES, CLASSES), np.bool_)
    parts = (state.get("normalizer"), state.get("pre_tokenizer"))
    spaces = " ▁" if "▁" in json.dumps(parts, ensure_ascii=False) else " "
    for part in _flat(parts[0], "normalizers"):
        if part["type"] == "NFC":
            joined[:, _COMPOSED_BY_NFC] = True
        elif part["type"] == "Replace":
            if part["pattern"] != {"String": " "} or part["content"] != "▁":
                raise _UnknownError
        elif part["type"] != "Prepend":
            raise _UnknownError
    splits = _flat(parts[1], "pretokenizers")
    for number, part in enumerate(splits):
        joined |= _joined_by_split(part, spaces, alone=len(splits) == 1, last=number + 1 == len(splits))
    return joined


def _flat(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return [leaf for each in part[inner] for leaf in _flat(each, inner)] if part["type"] == "Sequence" else [part]


def _joined_by_split(part: dict[str, Any], spaces: str, alone: bool, last: bool) -> Pairs:
    """What one pre-tokenizer joins. Prefixes added to its inputs are known only where the input is the whole text."""
    nothing = np.zeros((CLASSES, CLASSES), np.bool_)
    kind = part["type"]
    if kind == "Digits":
        return nothing
    if kind == "Metaspace" and (alone or part.get("prepend_scheme") in ("first", "never")):
        return nothing
    if kind == "ByteLevel" and last and (alone or not part.get("add_prefix_space")):
        return joined_by_pattern(_GPT2, spaces) if part.get("use_regex", True) else nothing
    if kind == "Split" and not part.get("invert"):
        if len(part["pattern"].get("String", "")) == 1:
            return nothing
        if "Regex" in part["pattern"] and part["behavior"] in ("Isolated", "Removed"):
            return joined_by_pattern(part["pattern"]["Regex"], spaces)
    raise _UnknownError


def joined_by_pattern(pattern: str, spaces: str = " ") -> Pairs:
    """Pairs (a, b) such that a match of `pattern` may contain both in this order, or end with a and look at b.

    Knows sequences of characters, classes and (?i:words) with quantifiers, alternatives, and looking ahead at one
    character. `spaces` are the characters that a space may have become before the pattern sees it.

    Raises:
        _UnknownError: the pattern says more than that.
    """
    joined = np.zeros((CLASSES, CLASSES), np.bool_)
    before = np.zeros(CLASSES, np.bool_)
    place = 0
    while place < len(pattern):
        item = _ITEM.match(pattern, place)
        if item is None:
            raise _UnknownError
        place = item.end()
        if item["bar"]:
            before = np.zeros(CLASSES, np.bool_)
        elif item["ahead"]:
            if not before.any():
                raise _UnknownError
            joined |= np.outer(before, _members(item["ahead"], spaces))
        else:
            members = _members(item["atom"], spaces) if item["atom"] else _members_of_words(item["words"])
            repeated = item["words"] or item["times"] not in (None, "?")
            joined |= np.outer(before | members if repeated else before, members)
            before = before | members
    return joined


def _members(atom: str, spaces: str) -> npt.NDArray[np.bool_]:
    """Classes that one character or character class of a pattern may match, bool [CLASSES]."""
    matches = regex.compile(atom).fullmatch
    members = np.array([matches(char) is not None for char in _ASCII] + [False] * (CLASSES - 128))
    members[ord(" ")] = any(matches(char) for char in spaces)
    members[LETTER:] = _BEYOND_ASCII.search(atom) is not None
    return members


def _members_of_words(words: str) -> npt.NDArray[np.bool_]:
    members = np.zeros(CLASSES, np.bool_)
    members[[ord(char) for char in words.lower() + words.upper() if char.isascii()]] = True
    members[LETTER:] = True  # without regard to case, s is ſ too
    return members
