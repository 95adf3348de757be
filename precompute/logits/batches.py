"""How a unit's tokens go through a model: in windows of its context, and windows of similar length in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fusionx.contract.tokens.encoding import Encoding

if TYPE_CHECKING:
    import torch

_BATCH_OVERHEAD = 256
"""Padded tokens that a batch more may save at least: about what its launching costs a small model on a GPU."""


@dataclass(frozen=True)
class UnitTokens:
    """A unit's tokens, chunk after chunk.

    ids: int64 [N]. labels: int64 [N], the next token of the same chunk, -1 at its end. offsets: int64 [rows + 1].
    """

    ids: torch.Tensor
    labels: torch.Tensor
    offsets: np.ndarray

    @classmethod
    def of(cls, encodings: list[Encoding]) -> UnitTokens:
        import torch

        offsets = np.cumsum([0, *(len(encoding.ids) for encoding in encodings)])
        ids = np.concatenate([np.zeros(0, np.int64), *(encoding.ids for encoding in encodings)])
        labels = np.append(ids[1:], -1)[: len(ids)]
        labels[offsets[1:][offsets[1:] > 0] - 1] = -1
        return cls(torch.from_numpy(ids), torch.from_numpy(labels), offsets)


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a row go through the model; the distributions from `fresh` on are kept.

    `lead` tokens stand before them: the BOS with which the model was trained to begin, where the row's own is cut off.
    """

    row: int
    start: int
    fresh: int
    stop: int
    lead: int = 0

    @property
    def length(self) -> int:
        return self.lead + self.stop - self.start


def windows_of(lengths: list[int], context: int | None, overlap: int | None, add_bos: bool = False) -> Iterator[Window]:
    """One window per row that has tokens; of a row longer than `context` as many as it takes.

    Consecutive windows share `overlap` tokens; these are kept from the earlier one, where more precedes them. With
    `add_bos` the rows begin with one, and every window does.
    """
    for row, length in enumerate(lengths):
        start = fresh = lead = 0
        while fresh < length:
            stop = length if context is None or overlap is None else min(length, start + context - lead)
            yield Window(row, start, fresh, stop, lead)
            start, fresh, lead = stop - (overlap or 0), stop, int(add_bos)


def alike(windows: list[Window], rotary_switch: int | None) -> list[list[Window]]:
    """Windows that may share a batch: models of LongRoPE turn a whole batch by what its longest row asks for."""
    if rotary_switch is None:
        return [windows]
    return [[w for w in windows if (w.length > rotary_switch) == beyond] for beyond in (False, True)]


def batches_by_length(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers in batches of similar length whose padded size stays within `batch_tokens` (at least one row).

    Of all ways to cut the rows in order of length it is the cheapest in padded tokens, a batch counting as
    `_BATCH_OVERHEAD` more. What is left as padding (2.3 % of a part of a megabyte) is not worth packing rows together.
    """
    rows = sorted((row for row in range(len(lengths)) if lengths[row]), key=lambda row: (-lengths[row], row))
    costs, starts = [0], [0]
    for stop in range(1, len(rows) + 1):
        choices: list[tuple[int, int]] = []
        for start in range(stop - 1, -1, -1):
            size = (stop - start) * lengths[rows[start]]
            if choices and size > batch_tokens:
                break
            choices.append((costs[start] + size + _BATCH_OVERHEAD, start))
        cost, start = min(choices)
        costs.append(cost)
        starts.append(start)
    batches = []
    stop = len(rows)
    while stop:
        batches.append(rows[starts[stop] : stop])
        stop = starts[stop]
    return batches[::-1]
