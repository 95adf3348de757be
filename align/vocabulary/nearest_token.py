"""The nearest of many tokens by edit distance, exactly as comparing every pair would find it, and in seconds.

A lower bound rules out almost all pairs and can never rule out a nearest one. Where the other token is longer by d,
at least d edits insert, which removes nothing; every character class that the token has and the other lacks, and every
character that no candidate has, takes one more edit. So it is in the other direction. The classes are the *signatures*,
64 bits each, and blocks of tokens with similar signatures are ruled out together by the bits that none or all of them
have. Pairs are measured in the order of their bound, until it exceeds the least distance, by Myers' bit-parallel
algorithm in Hyyrö's form for whole strings. Tokens that no candidate tells apart share one search.

Imports numba; `align.vocabulary.vocab_map` imports this file only when it has something to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fusionx.align.vocabulary.edit_distance import bytes_as_text, text_of
from fusionx.contract.jit import compiled

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
    text, raw = _by_validity(tokens)
    candidate_text, candidate_raw = _by_validity(candidates)
    everything = np.arange(len(candidates), dtype=np.int32)
    for rows, others, spell in (
        (text, candidate_text, bytes.decode),
        (text, candidate_raw, bytes_as_text),
        (raw, everything, bytes_as_text),
    ):
        if len(rows) and len(others):
            pieces, other_pieces = [tokens[row] for row in rows], [candidates[other] for other in others]
            coded, other_coded, known = _coded(list(map(spell, pieces)), list(map(spell, other_pieces)))
            # Equal codes find equal candidates, unless an earlier comparison, by other codes, found some already.
            alike = np.arange(len(rows)) if found.ties[rows].any() else _first_alike(coded)
            sources = _ordered(coded, known, np.unique(alike), rows, pieces)
            targets = _ordered(other_coded, known, np.arange(len(others)), others, other_pieces)
            _search(sources, targets, _blocks(targets), known, *found, prefixes)
            for column in (*found, prefixes):
                column[rows] = column[rows[alike]]
    return found


def _by_validity(pieces: Sequence[bytes]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Indices of the pieces that are valid UTF-8, and of those that are not."""
    valid = np.fromiter((text_of(piece) is not None for piece in pieces), bool, len(pieces))
    return np.flatnonzero(valid).astype(np.int32), np.flatnonzero(~valid).astype(np.int32)


# --- What the kernel reads ----------------------------------------------------------------------------------------


class _Coded(NamedTuple):
    """Strings end to end: characters as numbers, int32 [sum], and where each string begins, int64 [N + 1]."""

    codes: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]


class _Strings(NamedTuple):
    """Strings of one comparison, ordered by length and signature.

    Attributes:
        codes, offsets: as in `_Coded`.
        signatures: uint64 [N].
        rows: int32 [N], which token or candidate each one is.
        data, data_offsets: uint8 [sum], int64 [N + 1], their bytes in the same way and, for the cache's sake, order.
    """

    codes: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    signatures: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.int32]
    data: npt.NDArray[np.uint8]
    data_offsets: npt.NDArray[np.int64]


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


def _offsets(pieces: Sequence[bytes] | Sequence[str]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])


def _coded(tokens: list[str], candidates: list[str]) -> tuple[_Coded, _Coded, int]:
    """Both sides of one comparison, and how many characters the candidates have.

    These are ranked by frequency. Beyond them, a code stands for all characters that no candidate has and that share
    the same leading bytes with those that they have: no distance and no common prefix can tell them apart.
    """
    points = np.frombuffer("".join([*tokens, *candidates]).encode("utf-32-le"), np.uint32)
    border = sum(map(len, tokens))
    counts = np.bincount(points)
    present = np.bincount(points[border:], minlength=len(counts)) > 0
    characters = np.flatnonzero(present)
    codes = np.empty(len(counts), np.int32)
    codes[characters[np.argsort(-counts[characters], kind="stable")]] = np.arange(len(characters))
    heads = {chr(point).encode()[:length] for point in characters.tolist() for length in range(4)}
    code_of_head: dict[bytes, int] = {}
    for point in np.flatnonzero((counts > 0) & ~present).tolist():
        spelled = chr(point).encode()
        head = next(spelled[:length] for length in range(3, -1, -1) if spelled[:length] in heads)
        codes[point] = code_of_head.setdefault(head, len(characters) + len(code_of_head))
    coded = codes[points]
    return _Coded(coded[:border], _offsets(tokens)), _Coded(coded[border:], _offsets(candidates)), len(characters)


def _first_alike(strings: _Coded) -> npt.NDArray[np.int64]:
    """For each string the index of the first one with the same codes."""
    joined, first = strings.codes.tobytes(), dict[bytes, int]()
    places = (strings.offsets * strings.codes.itemsize).tolist()
    alike = (first.setdefault(joined[begin:end], index) for index, (begin, end) in enumerate(pairwise(places)))
    return np.fromiter(alike, np.int64, len(places) - 1)


def _ordered(
    strings: _Coded, known: int, chosen: npt.NDArray[np.int64], rows: npt.NDArray[np.int32], pieces: list[bytes]
) -> _Strings:
    """The chosen ones of `strings`, which `rows` and `pieces` describe."""
    signatures, lengths = _signatures(*strings, known)[chosen], np.diff(strings.offsets)[chosen]
    by_length = np.lexsort((signatures, lengths))
    order, lengths = chosen[by_length], lengths[by_length]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    codes = strings.codes[np.repeat(strings.offsets[order], lengths) + within]
    spelled = [pieces[index] for index in order]
    data = np.frombuffer(b"".join(spelled), np.uint8)
    return _Strings(codes, offsets, signatures[by_length], rows[order], data, _offsets(spelled))


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
def _signatures(codes: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], known: int) -> npt.NDArray[np.uint64]:
    """Which classes of known characters occur in each string, and which occur twice.

    One edit takes away at most one bit and adds at most one: a character's class loses or gains one occurrence, which
    crosses one of "occurs" and "occurs twice". The most frequent classes have the highest bits, so that sorting by
    signature brings strings together that share them.
    """
    signatures = np.zeros(len(offsets) - 1, np.uint64)
    for index in range(len(signatures)):
        signature = np.uint64(0)
        for code in codes[offsets[index] : offsets[index + 1]]:
            if code >= known:
                continue
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
def _floors(
    signature: np.uint64,
    any_bits: npt.NDArray[np.uint64],
    all_bits: npt.NDArray[np.uint64],
    first: int,
    last: int,
    inserted: int,
    deleted: int,
    floors: npt.NDArray[np.int64],
) -> None:
    """Lower bounds of the distances from a string to [first, last), all of one length, into `floors` from 0 on.

    Args:
        inserted, deleted: edits there must be that remove no bit of the signature, and edits that add none.
    """
    for index in range(np.uint64(last - first)):  # unsigned indices let the compiler take several at once
        place = np.uint64(first) + index
        missing, extra = signature & ~any_bits[place], all_bits[place] & ~signature
        floors[index] = max(_count(missing) + inserted, _count(extra) + deleted)


@compiled
def _distance_of_word(
    places: npt.NDArray[np.uint64], length: int, codes: npt.NDArray[np.int32], begin: int, end: int, limit: int
) -> int:
    """Edit distance of a string of at most 64 characters to `codes[begin:end]`, `limit + 1` where it is above `limit`.

    `places` has per character code the bits of the places at which the string has it.
    """
    one = np.uint64(1)
    last = one << np.uint64(length - 1)
    rises, falls = ~np.uint64(0), np.uint64(0)  # between neighbouring rows of the current column
    distance = length
    for column in range(begin, end):
        equal = places[np.uint64(codes[column])]
        vertical = equal | falls
        horizontal = (((equal & rises) + rises) ^ rises) | equal
        up = falls | ~(horizontal | rises)
        down = rises & horizontal
        if up & last:
            distance += 1
        elif down & last:
            distance -= 1
        if distance > limit + end - 1 - column:
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
def _common_prefix(
    first: npt.NDArray[np.uint8], begin: int, end: int, second: npt.NDArray[np.uint8], start: int, stop: int
) -> int:
    """Length of the common prefix of `first[begin:end]` and `second[start:stop]`."""
    length, most = 0, min(end - begin, stop - start)
    while length < most and first[begin + length] == second[start + length]:
        length += 1
    return length


@compiled
def _insert(
    candidates: npt.NDArray[np.int32], prefixes: npt.NDArray[np.int32], row: int, candidate: int, prefix: int
) -> None:
    """Puts a candidate in its place by preference; the last one falls out."""
    place = keep = candidates.shape[1]
    while place > 0 and (
        candidates[row, place - 1] < 0
        or prefixes[row, place - 1] < prefix
        or (prefixes[row, place - 1] == prefix and candidates[row, place - 1] > candidate)
    ):
        place -= 1
        if place + 1 < keep:
            candidates[row, place + 1], prefixes[row, place + 1] = candidates[row, place], prefixes[row, place]
    if place < keep:
        candidates[row, place], prefixes[row, place] = candidate, prefix


@compiled
def _search(
    sources: _Strings,
    targets: _Strings,
    blocks: _Blocks,
    known: int,
    distances: npt.NDArray[np.int32],
    candidates: npt.NDArray[np.int32],
    ties: npt.NDArray[np.int32],
    prefixes: npt.NDArray[np.int32],
) -> None:
    """Improves `distances` [N], `candidates` [N, keep], `ties` [N] and `prefixes` [N, keep] by one comparison.

    Every string is compared with those at a lower bound of 1, then 2 and so on until only farther ones are left: most
    tokens have a near one, and the bounds are sharpest for small distances.
    """
    # Names of their own and indices in place of slices: each array taken from a tuple, and each slice, is counted as
    # a reference by an atomic operation, which per pair would take as long as the comparison.
    codes, offsets, signatures = targets.codes, targets.offsets, targets.signatures
    data, data_offsets, own_data = targets.data, targets.data_offsets, sources.data
    starts, any_bits, all_bits, of_length = blocks.starts, blocks.any_bits, blocks.all_bits, blocks.of_length
    longest = len(of_length) - 2
    places = np.zeros(known, np.uint64)
    block_floors, floors = np.empty(len(any_bits), np.int64), np.empty(len(signatures), np.int64)
    for index in range(len(sources.rows)):
        row, signature = sources.rows[index], sources.signatures[index]
        string = sources.codes[sources.offsets[index] : sources.offsets[index + 1]]
        own_begin, own_end = sources.data_offsets[index], sources.data_offsets[index + 1]
        length, foreign = len(string), 0
        for place in range(length):
            if string[place] >= known:
                foreign += 1
            elif length <= _WORD:
                places[string[place]] |= np.uint64(1) << np.uint64(place)
        # Nothing is farther than the longer of the two strings.
        limit = min(int(distances[row]), max(length, longest))
        settled, bound = -1, max(foreign, 1)
        while settled < limit:
            for size in range(max(length - bound, 1), min(length + bound, longest) + 1):
                inserted, deleted = max(size - length, 0) + foreign, max(length - size, 0)
                first = of_length[size]
                _floors(signature, any_bits, all_bits, first, of_length[size + 1], inserted, deleted, block_floors)
                for block in range(first, of_length[size + 1]):
                    if block_floors[block - first] > bound:
                        continue
                    start, stop = starts[block], starts[block + 1]
                    _floors(signature, signatures, signatures, start, stop, inserted, deleted, floors)
                    for target in range(start, stop):
                        floor = floors[target - start]
                        if floor <= settled or floor > min(bound, limit):
                            continue
                        begin = offsets[target]
                        if length <= _WORD:
                            distance = _distance_of_word(places, length, codes, begin, begin + size, limit)
                        else:
                            distance = _distance_of_long(string, codes[begin : begin + size], limit)
                        if distance > limit:
                            continue
                        if distance < distances[row]:
                            distances[row] = limit = distance
                            candidates[row] = -1
                            ties[row] = 0
                        ties[row] += 1
                        begin, end = data_offsets[target], data_offsets[target + 1]
                        prefix = _common_prefix(own_data, own_begin, own_end, data, begin, end)
                        _insert(candidates, prefixes, row, targets.rows[target], prefix)
            settled, bound = bound, bound + 1 + bound // 8
        for code in string:
            if code < known:
                places[code] = np.uint64(0)
