"""Where two tokenizations of one text have consumed the same bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


def agreeing_positions(
    source_ends: npt.NDArray[np.int32], target_ends: npt.NDArray[np.int32]
) -> tuple[Int64Array, Int64Array]:
    """Positions of both sides, pair by pair, with equal `ends`; ascending.

    Where several positions of one side have the same end (a BOS before an empty prefix token, tokens within one
    character), only the last of them has consumed those bytes and nothing follows but the next bytes; the others agree
    with none.

    Args:
        source_ends, target_ends: [Ls] and [Lt], bytes consumed after each token, never decreasing.

    Returns:
        source_at, target_at: [boundaries] each.
    """
    source_last, target_last = _last_of_equal(source_ends), _last_of_equal(target_ends)
    source_at, target_at = _equal(source_ends[source_last], target_ends[target_last])
    return source_last[source_at], target_last[target_at]


def _last_of_equal(ends: npt.NDArray[np.int32]) -> Int64Array:
    """Positions whose end differs from that of the position after them."""
    return np.flatnonzero(np.append(ends[1:] != ends[:-1], True)[: len(ends)])


def _equal(first: npt.NDArray[np.int32], second: npt.NDArray[np.int32]) -> tuple[Int64Array, Int64Array]:
    """Indices into two strictly increasing arrays at which their values are equal."""
    if not len(first):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    at = np.minimum(np.searchsorted(first, second), len(first) - 1)
    equal = np.flatnonzero(first[at] == second)
    return at[equal], equal
