"""Positions: exact boundaries against a set-wise oracle, span matches against full enumeration."""

import time
import tracemalloc
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx.align.positions import Status, _length, _match_span, align_positions
from fusionx.align.vocabulary.edit_distance import token_distance
from fusionx.align.vocabulary.vocab_map import build_vocab_map
from fusionx.contract.tokens.token_table import TokenTable

N, E, M = Status.NOT_ALIGNED, Status.EXACT_BOUNDARY, Status.MINED_MATCH


def table(*pieces: bytes | None) -> TokenTable:
    roles = {token: "bos" for token, piece in enumerate(pieces) if piece is None}
    return TokenTable(list(pieces), roles, frozenset(), "f")


def tokens(*pieces: bytes | None) -> tuple[np.ndarray, np.ndarray, TokenTable]:
    """Ends, ids and table of a chunk whose i-th token has id i."""
    ends = np.cumsum([len(piece or b"") for piece in pieces]).astype(np.int32)
    return ends, np.arange(len(pieces), dtype=np.int32), table(*pieces)


def aligned(source: tuple, target: tuple, mined: bool = False) -> tuple[list[int], list[int]]:
    vocab_map = build_vocab_map(source[2], target[2], "mined") if mined else None
    index, status = align_positions(*source[:2], *target[:2], source[2], target[2], vocab_map)
    assert index.dtype == np.int32
    assert status.dtype == np.uint8
    return index.tolist(), status.tolist()


def test_equal_ends_are_the_same_place() -> None:
    source = tokens(None, b"Hel", b"lo", b" wor", b"ld")
    target = tokens(b"Hello", b" w", b"or", b"ld")
    assert aligned(source, target) == ([2, -1, 3, 4], [E, N, E, E])


def test_of_equal_ends_only_the_last_counts() -> None:
    source = tokens(None, b"", b"a", b"b")
    target = tokens(None, b"a", b"", b"b")
    assert aligned(source, target) == ([1, -1, 2, 3], [E, N, E, E])


def test_bos_on_both_sides_is_aligned() -> None:
    assert aligned(tokens(None, b"ab"), tokens(None, b"a", b"b")) == ([0, -1, 1], [E, N, E])


def test_empty_chunks() -> None:
    empty, some = tokens(), tokens(b"a")
    assert aligned(empty, some) == ([-1], [N])
    assert aligned(some, empty) == ([], [])
    assert aligned(empty, empty, mined=True) == ([], [])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=30).map(lambda steps: np.cumsum(steps).astype(np.int32)),
    st.lists(st.integers(0, 3), max_size=30).map(lambda steps: np.cumsum(steps).astype(np.int32)),
)
def test_exact_part_equals_the_definition(source_ends: np.ndarray, target_ends: np.ndarray) -> None:
    zeros = [np.zeros(len(ends), np.int32) for ends in (source_ends, target_ends)]
    index, status = align_positions(source_ends, zeros[0], target_ends, zeros[1], table(b"a"), table(b"a"))
    last_source = {end: at for at, end in enumerate(source_ends.tolist())}
    last_target = {end: at for at, end in enumerate(target_ends.tolist())}
    for at, end in enumerate(target_ends.tolist()):
        wanted = last_source.get(end, -1) if last_target[end] == at else -1
        assert index[at] == wanted
        assert status[at] == (E if wanted >= 0 else N)


def test_span_matches_are_one_to_one_and_map_to_each_other() -> None:
    # Both sides hold the token "foo", at different ends; "xx" and "yy" do not map to each other's neighbours.
    source = tokens(b"a", b"foo", b"bc", b"d")
    target = tokens(b"af", b"foo", b"b", b"d")
    source[0][:], target[0][:] = [1, 4, 6, 7], [2, 5, 6, 7]
    assert aligned(source, target) == ([-1, -1, 2, 3], [N, N, E, E])
    index, status = aligned(source, target, mined=True)
    assert index[1:] == [1, 2, 3]
    assert status[1:] == [M, E, E]


def test_span_matches_need_the_vocabulary_map() -> None:
    source, target = tokens(b"ab", b"cde"), tokens(b"abc", b"de")
    # "ab" is nearest to "abc" (1 edit), so the map sends it there; the last tokens end at the boundary.
    assert aligned(source, target, mined=True) == ([0, 1], [M, E])
    vocab_map = build_vocab_map(source[2], target[2], "exact")
    index, status = align_positions(*source[:2], *target[:2], source[2], target[2], vocab_map)
    assert (index.tolist(), status.tolist()) == ([-1, 1], [N, E])


def enumerated(source: list[bytes], target: list[bytes]) -> int:
    """Minimum cost over every one-to-one, order-keeping matching."""
    best = sum(map(_length, source)) + sum(map(_length, target))
    everything = best
    for size in range(1, min(len(source), len(target)) + 1):
        for rows in combinations(range(len(source)), size):
            for columns in combinations(range(len(target)), size):
                cost = everything
                for row, column in zip(rows, columns, strict=True):
                    cost += token_distance(source[row], target[column])
                    cost -= _length(source[row]) + _length(target[column])
                best = min(best, cost)
    return best


PIECES = st.lists(st.sampled_from([b"a", b"ab", b"b", b"abc", "é".encode(), b"\xc3", b"ca"]), max_size=5)


@settings(max_examples=200, deadline=None)
@given(PIECES, PIECES)
def test_span_program_is_optimal(source: list[bytes], target: list[bytes]) -> None:
    matches = _match_span(source, target)
    rows, columns = [row for row, _ in matches], [column for _, column in matches]
    assert rows == sorted(set(rows))
    assert columns == sorted(set(columns))
    cost = sum(map(_length, source)) + sum(map(_length, target))
    for row, column in matches:
        cost += token_distance(source[row], target[column]) - _length(source[row]) - _length(target[column])
    assert cost == enumerated(source, target)


def full_program(source: list[bytes], target: list[bytes]) -> list[tuple[int, int]]:
    """The paper's program over whole sequences: every cell of the full table, one of the cheapest ways through it.

    Special tokens are written as b"": nothing to edit, so they match each other for nothing.
    """
    cost = {(0, 0): (0, [])}
    for i in range(len(source) + 1):
        for j in range(len(target) + 1):
            ways = []
            if i and j:
                before, matches = cost[i - 1, j - 1]
                edits = token_distance(source[i - 1], target[j - 1])
                ways.append((before + edits, [*matches, (i - 1, j - 1)]))
            if i:
                before, matches = cost[i - 1, j]
                ways.append((before + _length(source[i - 1]), matches))
            if j:
                before, matches = cost[i, j - 1]
                ways.append((before + _length(target[j - 1]), matches))
            if ways:
                cost[i, j] = min(ways, key=lambda way: way[0])
    return cost[len(source), len(target)][1]


@st.composite
def two_segmentations(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """One text (few letters, so that tokens repeat; characters of several bytes) cut twice at random bytes."""
    text = draw(st.text(st.sampled_from("aab é你"), max_size=14)).encode()
    sides = []
    for _ in range(2):
        cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=len(text))))
        places = [0, *(cut for cut in cuts if cut < len(text)), len(text)]
        bos = [b""] if draw(st.booleans()) else []
        sides.append([*bos, *(text[start:end] for start, end in pairwise(places) if start < end)])
    return sides[0], sides[1]


@settings(max_examples=300, deadline=None)
@given(two_segmentations())
def test_span_by_span_equals_the_full_program_at_the_same_places(sides: tuple[list[bytes], list[bytes]]) -> None:
    """Wherever the full program transfers from a place that has consumed the same bytes, so do we.

    Its other transfers come from places that have consumed other bytes; of ours only those marked as such do.
    """
    source, target = (tokens(*(piece or None for piece in side)) for side in sides)
    index, status = aligned(source, target, mined=True)
    for source_at, target_at in full_program(*sides):
        if source[0][source_at] == target[0][target_at]:
            assert (index[target_at], status[target_at]) == (source_at, E)
    for target_at, source_at in enumerate(index):
        assert (status[target_at] == N) == (source_at < 0)
        if source_at >= 0:
            assert (source[0][source_at] == target[0][target_at]) == (status[target_at] == E)
    taken = [at for at in index if at >= 0]
    assert taken == sorted(set(taken))  # one-to-one, and the order kept across spans too


def test_the_full_program_matches_across_whole_sequences() -> None:
    source, target = [b"", b"ab", b"a", b"b"], [b"", b"a", b"b", b"ab"]
    assert (0, 0) in full_program(source, target)
    assert full_program([b"ab", b"c", b"de"], [b"a", b"b", b"c", b"de"])[-2:] == [(1, 2), (2, 3)]


def out_of_step(pairs: int) -> tuple[tuple, tuple]:
    """A text of 2 x `pairs` bytes whose two tokenizations agree at its end only."""
    source = [b"a", *[b"ba"] * (pairs - 1), b"b"]
    vocabulary = table(b"a", b"ba", b"b"), table(b"ab")
    ends = np.cumsum([len(piece) for piece in source]).astype(np.int32)
    ids = np.array([vocabulary[0].token_bytes.index(piece) for piece in source], np.int32)
    target = np.arange(2, 2 * pairs + 2, 2, dtype=np.int32), np.zeros(pairs, np.int32), vocabulary[1]
    return (ends, ids, vocabulary[0]), target


def test_a_block_without_agreement_takes_a_byte_a_pair() -> None:
    source, target = out_of_step(1024)
    vocab_map = build_vocab_map(source[2], target[2], "mined")
    tracemalloc.start()
    _, status = align_positions(*source[:2], *target[:2], source[2], target[2], vocab_map)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert status.tolist() == [M] * 1023 + [E]
    assert peak < 3 * 1024 * 1024


def test_a_span_beyond_any_block_is_left_alone_at_once() -> None:
    source, target = out_of_step(500_000)
    start = time.process_time()
    index, status = aligned(source, target, mined=True)
    assert time.process_time() - start < 5
    assert (index[-1], status[-1]) == (500_000, E)
    assert set(status[:-1]) == {N}


@pytest.mark.parametrize("mined", [False, True])
def test_specials_never_match_inside_a_span(mined: bool) -> None:
    source, target = tokens(b"ab", None, b"c"), tokens(b"a", None, b"bc")
    index, status = aligned(source, target, mined)
    assert status[1] == N
    assert index[2] == 2
