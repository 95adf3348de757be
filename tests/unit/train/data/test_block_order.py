"""The order of chunks: shuffling, packing, and which parts are needed next."""

from __future__ import annotations

import pickle
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx.contract.shards.parts import Ragged
from fusionx.train.data.block_order import (
    WINDOW_PARTS,
    BlockOrder,
    first_share,
    one_chunk_each,
    packed,
    shuffled_windows,
)

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=20)
SEEDS = st.integers(0, 2**31)


def slow_epoch(rows: list[int], seed: int, epoch: int) -> list[tuple[int, int]]:
    """The order as first written down: parts shuffled, then a list of all rows per window."""
    rng = np.random.default_rng([seed, epoch])
    parts = rng.permutation(len(rows))
    order: list[tuple[int, int]] = []
    for start in range(0, len(parts), 8):
        window = [(part, row) for part in parts[start : start + 8] for row in range(rows[part])]
        order += map(tuple, rng.permutation(np.array(window, dtype=np.int64).reshape(-1, 2)).tolist())
    return order


@settings(max_examples=60, deadline=None)
@given(rows=COUNTS, seed=SEEDS, epoch=st.integers(0, 99))
def test_an_epoch_is_the_permutation_of_its_seed(rows: list[int], seed: int, epoch: int) -> None:
    order = [tuple(item) for window in shuffled_windows(rows, seed, epoch) for item in window.tolist()]
    assert order == slow_epoch(rows, seed, epoch)
    assert sorted(order) == [(part, row) for part, count in enumerate(rows) for row in range(count)]


def test_epochs_and_seeds_differ() -> None:
    found = [str(shuffled_windows([9] * 4, seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(set(found)) == 4


def test_a_window_bounds_the_parts_in_use() -> None:
    windows = shuffled_windows([5] * 3 * WINDOW_PARTS, 0, 0)
    assert [len(set(window[:, 0].tolist())) for window in windows] == [WINDOW_PARTS] * 3


@settings(max_examples=40, deadline=None)
@given(rows=COUNTS.filter(any), seed=SEEDS)
def test_unpacked_blocks_are_the_chunks_epoch_after_epoch(rows: list[int], seed: int) -> None:
    order = BlockOrder([one_chunk_each(count) for count in rows], seed)
    assert order.blocks_per_epoch == sum(rows)
    found = [order.block(index) for index in range(3 * sum(rows))]
    assert found == [[place] for epoch in range(3) for place in slow_epoch(rows, seed, epoch)]


def slow_packing(lengths: list[int], tokens: int) -> list[list[int]]:
    """Best fit, longest first: every chunk looks at every block."""
    blocks: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        filled = [sum(lengths[one] for one in block) for block in blocks]
        fitting = [at for at, full in enumerate(filled) if full + lengths[row] <= tokens]
        if fitting:
            blocks[max(fitting, key=lambda at: (filled[at], -at))].append(row)
        else:
            blocks.append([row])
    return blocks


def rows_of(blocks: Ragged) -> list[list[int]]:
    return [blocks.row(index).tolist() for index in range(len(blocks))]


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 30), max_size=40), tokens=st.integers(30, 50))
def test_packing_is_best_fit(lengths: list[int], tokens: int) -> None:
    blocks = rows_of(packed(np.array(lengths, dtype=np.int64), tokens))
    assert blocks == slow_packing(lengths, tokens)
    assert sorted(row for block in blocks for row in block) == list(range(len(lengths)))
    assert all(block and sum(lengths[row] for row in block) <= tokens for block in blocks)


def test_packing_fills_blocks_of_text_like_minipile() -> None:
    """Documents of log-normal length, cut below 2048 tokens, in parts of 1 MB of text."""
    rng = np.random.default_rng(0)
    chunks: list[int] = []
    for document in rng.lognormal(np.log(600), 1.3, 4000).astype(int) + 1:
        while document > 2048:
            cut = int(rng.integers(1700, 2049))  # at a paragraph or a line
            chunks.append(cut)
            document -= cut
        chunks.append(int(document))
    parts = np.array_split(np.array(chunks), round(sum(chunks) / 270_000))
    blocks = sum(len(packed(part, 2048)) for part in parts)
    assert sum(chunks) / (blocks * 2048) > 0.95
    assert sum(chunks) / (len(chunks) * 2048) < 0.6  # of the unpacked rows


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(1, 20), max_size=9), min_size=1, max_size=20).filter(any),
    seed=SEEDS,
    tokens=st.integers(20, 60),
)
def test_every_epoch_has_every_chunk_once_in_the_same_packed_blocks(
    parts: list[list[int]], seed: int, tokens: int
) -> None:
    order = BlockOrder([packed(np.array(part, dtype=np.int64), tokens) for part in parts], seed)
    expected = sorted((part, row) for part, lengths in enumerate(parts) for row in range(len(lengths)))
    epochs = [
        [order.block(epoch * order.blocks_per_epoch + index) for index in range(order.blocks_per_epoch)]
        for epoch in range(2)
    ]
    for blocks in epochs:
        assert sorted(place for block in blocks for place in block) == expected
        assert all(len({part for part, _ in block}) == 1 for block in blocks)
    assert sorted(epochs[0]) == sorted(epochs[1])


@settings(max_examples=40, deadline=None)
@given(rows=COUNTS.filter(any), seed=SEEDS)
def test_the_next_windows_parts_are_due_before_it_begins(rows: list[int], seed: int) -> None:
    order = BlockOrder([one_chunk_each(count) for count in rows], seed)
    windows = [(epoch, at) for epoch in range(3) for at in range(len(shuffled_windows(rows, seed, epoch)))]
    sizes = [len(shuffled_windows(rows, seed, epoch)[at]) for epoch, at in windows]
    start = 0
    for size, following in pairwise(sizes):
        first_uses = [order.block(index)[0][0] for index in range(start + size, start + size + following)]
        needed = list(dict.fromkeys(first_uses))
        ahead = [order.parts_ahead(index) for index in range(start, start + size)]
        assert ahead[-1] == needed
        for position, due in enumerate(ahead):
            assert due == needed[: len(due)]
            assert (len(due) - 1) * size < len(needed) * (position + 1) <= len(due) * size
        start += size


def test_parts_become_due_one_by_one() -> None:
    order = BlockOrder([one_chunk_each(10)] * 16, 0)
    due = [len(order.parts_ahead(index)) for index in range(80)]
    assert [(count, len(list(same))) for count, same in groupby(due)] == [(count, 10) for count in range(1, 9)]


@pytest.mark.parametrize("tokens", [None, 40])
def test_an_order_crosses_to_another_process(tokens: int | None) -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 50)
    blocks = one_chunk_each(50) if tokens is None else packed(lengths, tokens)
    order = BlockOrder([blocks] * 3, 7)
    first = [order.block(index) for index in range(200)]
    moved = pickle.loads(pickle.dumps(order))
    assert [moved.block(index) for index in range(200)] == first


@settings(max_examples=60, deadline=None)
@given(rows=COUNTS.filter(any), shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_a_share_is_of_whole_blocks_and_lies_within_every_larger_one(
    rows: list[int], shares: tuple[float, float]
) -> None:
    blocks = [packed(np.arange(1, count + 1), 5 + count) for count in rows]
    places = [
        {(part, *of_part.row(block).tolist()) for part, of_part in enumerate(found) for block in range(len(of_part))}
        for found in (first_share(blocks, share) for share in (*sorted(shares), 1))
    ]
    smaller, larger, whole = places
    assert smaller <= larger <= whole
    assert len(whole) == sum(map(len, blocks))
    assert [len(smaller), len(larger)] == [max(1, round(share * len(whole))) for share in sorted(shares)]


def test_a_share_is_the_same_for_every_seed() -> None:
    blocks = first_share([one_chunk_each(9)] * 4, 0.25)
    taken = [{tuple(order.block(index)[0]) for index in range(order.blocks_per_epoch)}
             for order in (BlockOrder(blocks, seed) for seed in (0, 1))]  # fmt: skip
    assert taken[0] == taken[1]
    assert len(taken[0]) == 9
