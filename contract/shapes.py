"""The one place that decides the shapes [rows, length] in which token batches reach a model.

An accelerator makes plans, compiled kernels and graphs for every new shape (on an H200 a new one cost a training step
0.3 s), so that there batches are padded to a few. A CPU makes nothing, and computes every padded token: there a batch
is as long as its longest row. Used by precompute, the trainer and validation, so that all meet the same shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BATCH_OVERHEAD = 256
"""Padded tokens that a batch more may save at least: about what its launching costs a small model on a GPU."""


@dataclass(frozen=True)
class Shapes:
    """Lengths in `steps` even steps between two powers of two, from `least` tokens on; rows in powers of two.

    At most 1 / steps of a length is added, half of that on average. `steps` None leaves lengths and rows as they are.
    """

    steps: int | None
    least: int = 1

    def length(self, tokens: int, most: int | None = None) -> int:
        """The padded length of a batch whose longest row has so many tokens.

        `most` is what the model takes at most (its context, a block): no batch is padded beyond it.
        """
        if self.steps is None:
            return tokens
        padded = _up(max(tokens, self.least), self.steps)
        return padded if most is None else max(tokens, min(padded, most))

    def rows(self, rows: int) -> int:
        """The padded number of rows: the last ones are of padding alone."""
        return rows if self.steps is None else _up(rows, 1)


EXACT = Shapes(steps=None)
FEW = Shapes(steps=4, least=64)


def shapes_of(device_type: str) -> Shapes:
    """What serves a device best, by `torch.device.type`."""
    return EXACT if device_type == "cpu" else FEW


@dataclass(frozen=True)
class Batch:
    """Row numbers, longest first, and the padded shape in which they are computed; `size` >= the number of rows."""

    rows: list[int]
    size: int
    length: int


def batches_by_length(
    lengths: Sequence[int], batch_tokens: int, shapes: Shapes = EXACT, most: int | None = None
) -> list[Batch]:
    """Every row that has tokens, in batches whose padded size stays within `batch_tokens` (at least one row).

    Of all ways to cut the rows in order of length it is the cheapest in padded tokens, a batch counting as
    `_BATCH_OVERHEAD` more. What is left as padding (of a part of a megabyte of web text 2.6 % in exact shapes, 7 % in
    few) is not worth packing rows together. `most` as in `Shapes.length`.
    """
    rows = sorted((row for row in range(len(lengths)) if lengths[row]), key=lambda row: (-lengths[row], row))
    widths = np.array([shapes.length(lengths[row], most) for row in rows], np.int64)
    padded = np.array([shapes.rows(count) for count in range(len(rows) + 1)], np.int64)
    starts = _cheapest_cuts(widths, padded, batch_tokens)
    batches = []
    stop = len(rows)
    while stop:
        start = starts[stop]
        batches.append(Batch(rows[start:stop], int(padded[stop - start]), int(widths[start])))
        stop = start
    return batches[::-1]


def _cheapest_cuts(widths: npt.NDArray[np.int64], padded: npt.NDArray[np.int64], budget: int) -> list[int]:
    """For every number of rows, falling in width, where the last batch of the cheapest way to cut them starts."""
    costs = np.zeros(len(widths) + 1, np.int64)
    starts = [0] * len(costs)
    first = 0
    for stop in range(1, len(costs)):
        while first < stop - 1 and padded[stop - first] * widths[first] > budget:
            first += 1  # sizes only grow with the rows, so that what is too large now stays too large
        choices = costs[first:stop] + padded[stop - first : 0 : -1] * widths[first:stop]
        best = int(choices.argmin())
        starts[stop], costs[stop] = first + best, choices[best] + _BATCH_OVERHEAD
    return starts


def _up(number: int, steps: int) -> int:
    """The next of the numbers that lie in `steps` even steps between powers of two; small ones stay as they are."""
    below = 1 << max(number - 1, 0).bit_length() >> 1
    step = max(below // steps, 1)
    return -(-number // step) * step
