"""Which answers of a chat are read as one: each one's tokens go on from those of the answer before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fusionx.contract.shards.parts import Ragged


def goes_on(before: npt.NDArray[np.int32], ids: npt.NDArray[np.int32], context: int) -> bool:
    """Whether the row `ids`, whose first `context` tokens are not predicted, goes on from the row `before`."""
    return context >= len(before) > 0 and bool(np.array_equal(before, ids[: len(before)]))


def read_together(rows: Sequence[npt.NDArray[np.int32]], contexts: npt.NDArray[np.integer]) -> Ragged:
    """A part's rows in runs of which each row goes on from the one before it; every row once, in order."""
    starts = [row for row, ids in enumerate(rows) if not row or not goes_on(rows[row - 1], ids, int(contexts[row]))]
    return Ragged(np.arange(len(rows), dtype=np.int32), np.array([*starts, len(rows)], np.int32))


def regrouped(blocks: Ragged, runs: Ragged) -> Ragged:
    """Blocks of rows, of blocks of `runs` of rows."""
    rows = [np.concatenate([runs.row(run) for run in blocks.row(block)]) for block in range(len(blocks))]
    flat = np.concatenate([np.zeros(0, np.int32), *rows])
    return Ragged(flat.astype(np.int32), np.append(0, np.cumsum([len(row) for row in rows])).astype(np.int32))
