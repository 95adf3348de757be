"""The nearest of many tokens by edit distance, exactly as comparing every pair would find it, and in seconds.

Three bounds rule out almost all pairs, and none of them can rule out a nearest one. A distance is at least the
difference of the lengths. It is at least the number of character classes that one token has and the other lacks, in
either direction: the *signatures*, 64 bits each. And blocks of tokens with similar signatures are ruled out together
by the bits that none or all of them have. What is left is measured by Myers' bit-parallel algorithm in Hyyrö's form
for whole strings.

Imports numba; `align.vocabulary.vocab_map` imports this file only when it has something to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fusionx.align.jit import compiled
from fusionx.align.vocabulary.edit_distance import bytes_as_text, text_of

_OWN_CLASSES = 36
_CLASSES = 44
"""Of the signature's 64 bits: 36 for the most frequent characters, 8 that all others share, and 20 for classes that
occur twice. Measured on real vocabularies; any division is exact."""
_WORD = 64
_BLOCK = 16
_FAR = np.iinfo(np.int32).max


class Nearest(NamedTuple):
    """The nearest candidates of N tokens.

    Attributes:
        distance: int32 [N], the minimum edit distance (see `align.vocabulary.edit_distance`).
        candidates: int32 [N, keep], indices of candidates at that distance, -1 beyond the last one; first those with
            the longer common prefix in bytes, then those with the lower index.
        ties: int32 [N], how many candidates are at that distance, kept or not.
    """

    distance: npt.NDArray[np.int32]
    candidates: npt.NDArray[np.int32]
    ties: npt.NDArray[np.int32]


def nearest(tokens: Sequence[bytes], candidates: Sequence[bytes], keep: int = 1) -> Nearest:
    """The candidates at minimum edit distance from every token.

    Two tokens are compared by characters where both are valid UTF-8, else by bytes, and both kinds of distance are
    compared as plain numbers.

    Args:
        tokens, candidates: no empty ones; `candidates` are distinct. Without any, distances are -1.
        keep: how many of equally near candidates to name.
    """
    found = Nearest(
        np.full(len(tokens), _FAR if candidates else -1, np.int32),
        np.full((len(tokens), keep), -1, np.int32),
        np.zeros(len(tokens), np.int32),
    )
    prefixes = np.zeros((len(tokens), keep), np.int32)
    token_bytes, candidate_bytes = _packed(tokens), _packed(candidates)
    text, raw = _by_validity(tokens)
    candidate_text, candidate_raw = _by_validity(candidates)
    everything = np.arange(len(candidates), dtype=np.int32)
    for rows, others, spell in (
        (text, candidate_text, bytes.decode),
        (text, candidate_raw, bytes_as_text),
        (raw, everything, bytes_as_text),
    ):
        if len(rows) and len(others):
            spelled = [spell(tokens[row]) for row in rows], [spell(candidates[other]) for other in others]
            sources, targets, classes = _strings(*spelled, rows, others)
            _search(sources, targets, _blocks(targets), classes, token_bytes, candidate_bytes, *found, prefixes)
    return found


def _by_validity(pieces: Sequence[bytes]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Indices of the pieces that are valid UTF-8, and of those that are not."""
    valid = np.fromiter((text_of(piece) is not None for piece in pieces), bool, len(pieces))
    return np.flatnonzero(valid).astype(np.int32), np.flatnonzero(~valid).astype(np.int32)


# --- What the kernel reads ----------------------------------------------------------------------------------------


class _Packed(NamedTuple):
    """Byte strings end to end: uint8 [sum], and where each begins, int64 [N + 1]."""

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]


class _Strings(NamedTuple):
    """Strings of one comparison, ordered by length and signature.

    Attributes:
        codes: int32 [sum], characters as ranks by frequency.
        offsets: int64 [N + 1], where each string begins.
        signatures: uint64 [N].
        rows: int32 [N], which token or candidate each one is.
    """

    codes: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    signatures: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.int32]


class _Blocks(NamedTuple):
    """Up to `_BLOCK` neighbouring strings of one length each.

    Attributes:
        starts: int64 [B + 1], index of each block's first string.
        any_bits, all_bits: uint64 [B], signature bits that at least one and that every string of the block has.
        of_length: int64 [longest + 2], index of the first block whose strings are at least that long.
    """

    starts: npt.NDArray[np.int64]
    any_bits: npt.NDArray[np.uint64]
    all_bits: npt.NDArray[np.uint64]
    of_length: npt.NDArray[np.int64]


def _packed(pieces: Sequence[bytes]) -> _Packed:
    return _Packed(np.frombuffer(b"".join(pieces), np.uint8), _offsets(pieces))


def _offsets(pieces: Sequence[bytes] | Sequence[str]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])


def _strings(
    tokens: list[str], candidates: list[str], token_rows: npt.NDArray[np.int32], candidate_rows: npt.NDArray[np.int32]
) -> tuple[_Strings, _Strings, int]:
    """Both sides of one comparison and the number of distinct characters."""
    points = np.frombuffer("".join([*tokens, *candidates]).encode("utf-32-le"), np.uint32)
    characters, inverse, counts = np.unique(points, return_inverse=True, return_counts=True)
    ranks = np.empty(len(characters), np.int32)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(characters))
    codes = ranks[inverse]
    border = sum(map(len, tokens))
    return (
        _ordered(codes[:border], _offsets(tokens), token_rows),
        _ordered(codes[border:], _offsets(candidates), candidate_rows),
        len(characters),
    )


def _ordered(codes: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int32]) -> _Strings:
    signatures, lengths = _signatures(codes, offsets), np.diff(offsets)
    order = np.lexsort((signatures, lengths))
    starts = offsets[:-1][order]
    new_offsets = np.concatenate([[0], np.cumsum(lengths[order])])
    within = np.arange(len(codes)) - np.repeat(new_offsets[:-1], lengths[order])
    return _Strings(codes[np.repeat(starts, lengths[order]) + within], new_offsets, signatures[order], rows[order])


def _blocks(strings: _Strings) -> _Blocks:
    lengths = np.diff(strings.offsets)
    of_length = np.searchsorted(lengths, np.arange(int(lengths[-1]) + 2))
    starts = [np.arange(first, last, _BLOCK) for first, last in pairwise(of_length)]
    first = np.concatenate(starts)
    return _Blocks(
        np.append(first, len(lengths)),
        np.bitwise_or.reduceat(strings.signatures, first),
        np.bitwise_and.reduceat(strings.signatures, first),
        np.searchsorted(lengths[first], np.arange(int(lengths[-1]) + 2)),
    )


# --- The kernel ---------------------------------------------------------------------------------------------------


@compiled
def _signatures(codes: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Which classes of characters occur in each string, and which occur twice.

    One edit takes away at most one bit and adds at most one: a character's class loses or gains one occurrence, which
    crosses one of "occurs" and "occurs twice". The most frequent classes have the highest bits, so that sorting by
    signature brings strings together that share them.
    """
    signatures = np.zeros(len(offsets) - 1, np.uint64)
    for index in range(len(signatures)):
        signature = np.uint64(0)
        for code in codes[offsets[index] : offsets[index + 1]]:
            place = code if code < _OWN_CLASSES else _OWN_CLASSES + code % (_CLASSES - _OWN_CLASSES)
            bit = np.uint64(1) << np.uint64(63 - place)
            if signature & bit:
                bit = np.uint64(1) << np.uint64(place % (_WORD - _CLASSES))
            signature |= bit
        signatures[index] = signature
    return signatures


@compiled
def _count(bits: np.uint64) -> np.int64:
    """Number of set bits; the compiler knows this form as one instruction."""
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _distance_of_word(places: npt.NDArray[np.uint64], length: int, other: npt.NDArray[np.int32], limit: int) -> int:
    """Edit distance of a string of at most 64 characters to `other`; anything above `limit` where it is above.

    `places` has per character code the bits of the places at which the string has it.
    """
    one = np.uint64(1)
    last = one << np.uint64(length - 1)
    rises, falls = ~np.uint64(0), np.uint64(0)  # between neighbouring rows of the current column
    distance = length
    for column in range(len(other)):
        equal = places[other[column]]
        vertical = equal | falls
        horizontal = (((equal & rises) + rises) ^ rises) | equal
        up = falls | ~(horizontal | rises)
        down = rises & horizontal
        if up & last:
            distance += 1
        elif down & last:
            distance -= 1
        if distance > limit + len(other) - 1 - column:
            return limit + 1
        up = (up << one) | one
        rises = (down << one) | ~(vertical | up)
        falls = up & vertical
    return distance


@compiled
def _distance_of_long(string: npt.NDArray[np.int32], other: npt.NDArray[np.int32], limit: int) -> int:
    """Edit distance of strings of any length by the textbook; anything above `limit` where it is above."""
    row = np.arange(len(other) + 1)
    for place in range(len(string)):
        diagonal, row[0] = row[0], place + 1
        lowest = row[0]
        for column in range(len(other)):
            cost = min(diagonal + (string[place] != other[column]), row[column] + 1, row[column + 1] + 1)
            diagonal, row[column + 1] = row[column + 1], cost
            lowest = min(lowest, cost)
        if lowest > limit:
            return limit + 1
    return row[-1]


@compiled
def _common_prefix(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> int:
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return length


@compiled
def _insert(candidates: npt.NDArray[np.int32], prefixes: npt.NDArray[np.int32], candidate: int, prefix: int) -> None:
    """Puts a candidate in its place by preference; the last one falls out."""
    place = len(candidates)
    while place > 0 and (
        candidates[place - 1] < 0
        or prefixes[place - 1] < prefix
        or (prefixes[place - 1] == prefix and candidates[place - 1] > candidate)
    ):
        place -= 1
        if place + 1 < len(candidates):
            candidates[place + 1], prefixes[place + 1] = candidates[place], prefixes[place]
    if place < len(candidates):
        candidates[place], prefixes[place] = candidate, prefix


@compiled
def _search(
    sources: _Strings,
    targets: _Strings,
    blocks: _Blocks,
    classes: int,
    source_bytes: _Packed,
    target_bytes: _Packed,
    distances: npt.NDArray[np.int32],
    candidates: npt.NDArray[np.int32],
    ties: npt.NDArray[np.int32],
    prefixes: npt.NDArray[np.int32],
) -> None:
    """Improves `distances` [N], `candidates` [N, keep], `ties` [N] and `prefixes` [N, keep] by one comparison.

    Every string is searched within a distance of 1, then 2 and so on until something is found: most tokens have a
    near one, and the bounds are sharpest for small distances.
    """
    longest = len(blocks.of_length) - 2
    places = np.zeros(classes, np.uint64)
    for index in range(len(sources.rows)):
        row, signature = sources.rows[index], sources.signatures[index]
        string = sources.codes[sources.offsets[index] : sources.offsets[index + 1]]
        spelled = source_bytes.data[source_bytes.offsets[row] : source_bytes.offsets[row + 1]]
        length = len(string)
        if length <= _WORD:
            for place in range(length):
                places[string[place]] |= np.uint64(1) << np.uint64(place)
        bound = 0
        # Nothing is farther than the longer of the two strings.
        while bound < min(distances[row], max(length, longest)):
            bound += 1 + bound // 8
            limit = min(bound, distances[row])
            first = blocks.of_length[min(max(length - limit, 0), longest + 1)]
            last = blocks.of_length[min(length + limit, longest) + 1]
            for block in range(first, last):
                missing, extra = signature & ~blocks.any_bits[block], blocks.all_bits[block] & ~signature
                if _count(missing) > limit or _count(extra) > limit:
                    continue
                for target in range(blocks.starts[block], blocks.starts[block + 1]):
                    other = targets.signatures[target]
                    if _count(signature & ~other) > limit or _count(other & ~signature) > limit:
                        continue
                    compared = targets.codes[targets.offsets[target] : targets.offsets[target + 1]]
                    if length <= _WORD:
                        distance = _distance_of_word(places, length, compared, limit)
                    else:
                        distance = _distance_of_long(string, compared, limit)
                    if distance > limit:
                        continue
                    if distance < distances[row]:
                        distances[row] = limit = distance
                        candidates[row] = -1
                        ties[row] = 0
                    ties[row] += 1
                    candidate = targets.rows[target]
                    begin, end = target_bytes.offsets[candidate], target_bytes.offsets[candidate + 1]
                    prefix = _common_prefix(spelled, target_bytes.data[begin:end])
                    _insert(candidates[row], prefixes[row], candidate, prefix)
        if length <= _WORD:
            for code in string:
                places[code] = np.uint64(0)
