"""In which order the chunks of a split are taken: a pure function of the parts, the packing and the seed.

A block is what fills one row of a batch: one chunk or, packed, several whole chunks of one part. Each epoch shuffles
the parts, then the blocks within windows of a few parts, so that only these need be in memory.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fusionx.contract.shards.parts import Ragged

WINDOW_PARTS = 8


class BlockOrder:
    """Every block of every epoch by one number: `index` counts blocks through all epochs, without end.

    A part is packed by itself and only once, so all epochs have the same blocks, `blocks_per_epoch` of them, and an
    index says its epoch by division. What an epoch shuffles is their order.

    Args:
        blocks: per part the rows of each of its blocks (`one_chunk_each`, `packed`); every row once.
    """

    def __init__(self, blocks: Sequence[Ragged], seed: int) -> None:
        self._blocks, self._seed = blocks, seed
        self.blocks_per_epoch = sum(map(len, blocks))
        self._epoch = lru_cache(maxsize=2)(self._epoch_uncached)

    def __reduce__(self) -> tuple[type[BlockOrder], tuple[Sequence[Ragged], int]]:
        return BlockOrder, (self._blocks, self._seed)  # without the cache, which cannot cross to another process

    def block(self, index: int) -> list[tuple[int, int]]:
        """(part, row) of each chunk of the block."""
        window, position = self._find(index)
        part, block = window[position].tolist()
        return [(part, row) for row in self._blocks[part].row(block).tolist()]

    def parts_ahead(self, index: int) -> list[int]:
        """Those parts of the next window that should be on their way when block `index` is taken, soonest first.

        They become due evenly over the window, so that reading keeps pace with training and nothing waits where two
        windows meet.
        """
        window, position = self._find(index)
        following, _ = self._find(index - position + len(window))
        firsts = np.sort(np.unique(following[:, 0], return_index=True)[1])
        due = -(-len(firsts) * (position + 1) // len(window))
        return following[firsts[:due], 0].tolist()

    def _find(self, index: int) -> tuple[npt.NDArray[np.int64], int]:
        """The window that holds block `index`, and the block's place in it."""
        epoch, position = divmod(index, self.blocks_per_epoch)
        windows, starts = self._epoch(epoch)
        number = bisect_right(starts, position) - 1
        return windows[number], position - starts[number]

    def _epoch_uncached(self, epoch: int) -> tuple[list[npt.NDArray[np.int64]], list[int]]:
        windows = shuffled_windows([len(blocks) for blocks in self._blocks], self._seed, epoch)
        starts = np.cumsum([0, *map(len, windows[:-1])])
        return windows, starts.tolist()


def shuffled_windows(counts: Sequence[int], seed: int, epoch: int) -> list[npt.NDArray[np.int64]]:
    """(part, item) of every item in one epoch's order, as int64 [items, 2] per window; part p has `counts[p]` items."""
    rng = np.random.default_rng([seed, epoch])
    parts = rng.permutation(len(counts))
    windows = []
    for start in range(0, len(parts), WINDOW_PARTS):
        within = parts[start : start + WINDOW_PARTS]
        items = [np.stack([np.full(counts[part], part), np.arange(counts[part])], axis=1) for part in within]
        windows.append(rng.permutation(np.concatenate(items)))
    return [window for window in windows if len(window)]


def first_share(blocks: Sequence[Ragged], share: float) -> list[Ragged]:
    """Of all parts' blocks the first `share`, at least one block, of one permutation that never changes."""
    if share == 1:
        return list(blocks)
    counts = [len(part) for part in blocks]
    kept = np.zeros(sum(counts), dtype=bool)
    kept[np.random.default_rng(0).permutation(len(kept))[: max(1, round(share * len(kept)))]] = True
    shares = []
    for part, of_part in zip(blocks, np.split(kept, np.cumsum(counts)[:-1]), strict=True):
        lengths = part.lengths()
        offsets = np.append(0, np.cumsum(lengths[of_part])).astype(np.int32)
        shares.append(Ragged(part.values[np.repeat(of_part, lengths)], offsets))
    return shares


def one_chunk_each(rows: int) -> Ragged:
    """A part's blocks without packing."""
    return Ragged(np.arange(rows, dtype=np.int32), np.arange(rows + 1, dtype=np.int32))


def packed(lengths: npt.NDArray[np.integer], tokens: int) -> Ragged:
    """A part's blocks of at most `tokens` tokens: the longest chunk first, each into the fullest block that has room.

    Args:
        lengths: tokens of every row, none above `tokens`.
    """
    blocks: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, block), sorted
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        place = bisect_left(room, (length, -1))
        if place < len(room):
            free, block = room.pop(place)
            blocks[block].append(row)
        else:
            free, block = tokens, len(blocks)
            blocks.append([row])
        insort(room, (free - length, block))
    flat = np.array([row for block in blocks for row in block], dtype=np.int32)
    return Ragged(flat, np.append(0, np.cumsum([len(block) for block in blocks])).astype(np.int32))
