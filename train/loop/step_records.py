"""What each step found: it stays on the device until somebody reads it, so that no step waits for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusionx.train.objective.losses import Totals

_TERMS = 5


class StepRecord(NamedTuple):
    """One step, over all processes but for `keys`, which are this one's chunks.

    lm, fuse, text_nll, variation: sums of the losses' terms. tokens: that were read. norms: of each part's gradient
    before it was clipped. totals: what the means divide by.
    """

    step: int
    keys: list[tuple[int, int]]
    lm: float
    fuse: float
    text_nll: float
    variation: float
    tokens: int
    norms: dict[str, float]
    totals: Totals

    @property
    def was_taken(self) -> bool:
        """Whether the gradients were finite; else the step changed nothing."""
        return all(map(math.isfinite, self.norms.values()))


class StepRecords:
    """Of the steps since the last `read`. `parts`: names of what is trained, in the order of the norms."""

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = list(parts)
        self._unread: list[tuple[int, list[tuple[int, int]], Tensor]] = []

    def add(self, step: int, keys: list[tuple[int, int]], terms: Tensor, norms: Tensor, totals: Totals) -> None:
        """
        Args:
            terms: float64 [5], L_lm, L_fuse, the selector loss, the variation, the tokens. norms: [parts].
        """
        self._unread.append((step, keys, torch.cat([terms, norms.double(), totals.vector()])))

    def read(self) -> list[StepRecord]:
        """In one copy, which waits for the device."""
        unread, self._unread = self._unread, []
        if not unread:
            return []
        rows = torch.stack([values for *_, values in unread]).cpu()
        return [self._record(step, keys, row) for (step, keys, _), row in zip(unread, rows, strict=True)]

    def _record(self, step: int, keys: list[tuple[int, int]], row: Tensor) -> StepRecord:
        terms, norms, totals = row.tensor_split([_TERMS, _TERMS + len(self._parts)])
        lm, fuse, text_nll, variation, tokens = terms.tolist()
        by_part = dict(zip(self._parts, norms.tolist(), strict=True))
        return StepRecord(step, keys, lm, fuse, text_nll, variation, int(tokens), by_part, Totals.from_vector(totals))
