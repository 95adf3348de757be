"""The objective of one step: L_lm + lambda_fuse L_fuse + lambda_feed L_feed + lambda_select L_select (eq. 10).

Every mean is over the whole step: its sums are taken over all micro-batches and devices before the first backward pass,
so a step is the same however it is divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusionx.train.config import MethodConfig
from fusionx.train.objective.teacher import Selection


class Totals(NamedTuple):
    """What a step's means divide by, and eq. 9's sums; float64.

    positions: with a next token. taught: with a teacher. scored: in the selector loss. places:
    in the variation. importances: [M].
    """

    positions: Tensor
    taught: Tensor
    scored: Tensor
    places: Tensor
    importances: Tensor

    def vector(self) -> Tensor:
        """[4 + M], to be summed over devices."""
        return torch.cat([torch.stack(self[:4]), self.importances])

    @classmethod
    def from_vector(cls, vector: Tensor) -> Totals:
        positions, taught, scored, places = vector[:4].unbind()
        return cls(positions, taught, scored, places, vector[4:])


def local_totals(labels: Sequence[Tensor], selections: Sequence[Selection | None], candidates: int) -> Totals:
    """Sums over one device's micro-batches; each has `labels` [N], below 0 where they only fill up, and, where the
    method has a teacher, a selection."""
    made = [selection for selection in selections if selection is not None]
    device = labels[0].device

    def total(values: Sequence[Tensor], shape: tuple[int, ...] = ()) -> Tensor:
        zero = torch.zeros(shape, dtype=torch.float64, device=device)
        return sum((value.detach().double() for value in values), zero)

    return Totals(
        total([(of_batch >= 0).sum() for of_batch in labels]),
        total([selection.taught.sum(dtype=torch.float64) for selection in made]),
        total([selection.scored for selection in made]),
        total([selection.places for selection in made]),
        total([selection.importances for selection in made], (candidates,)),
    )


def head_scales(method: MethodConfig, totals: Totals) -> tuple[Tensor, Tensor]:
    """What the sums of label NLLs and of cross-entropies are multiplied with."""
    return method.lambda_lm / divisor(totals.positions), method.lambda_fuse / divisor(totals.taught)


def divisor(total: Tensor) -> Tensor:
    """What a mean divides by: the total, or 1 where there is nothing. (Weights may sum to less than 1.)"""
    return total + (total <= 0)


def selection_loss(method: MethodConfig, selection: Selection, totals: Totals) -> Tensor:
    """One micro-batch's share of lambda_feed L_feed + lambda_select L_select, right in its gradient.

    CV^2 of the summed importances is not a sum over micro-batches; its gradient is: the derivative by the step's
    importances, times this micro-batch's own.
    """
    with torch.enable_grad():
        importances = totals.importances.detach().requires_grad_()
        slope = torch.autograd.grad(squared_variation(importances), importances)[0].to(selection.importances.dtype)
    if method.selection.feed_over == "place":
        feed = selection.variation / totals.places.clamp(min=1)
    else:
        feed = (slope * selection.importances).sum()
    return method.lambda_feed * feed + method.lambda_select * selection.text_nll / totals.scored.clamp(min=1)


def feed_value(method: MethodConfig, variation: Tensor, totals: Totals) -> Tensor:
    """L_feed of the step; `variation` is summed like the totals."""
    if method.selection.feed_over == "place":
        return variation / totals.places.clamp(min=1)
    return squared_variation(totals.importances)


def squared_variation(importances: Tensor, eps: float = 1e-9) -> Tensor:
    """CV^2 = Var / (Mean^2 + eps) of the M importances (eq. 9); population variance."""
    return importances.var(correction=0) / (importances.mean() ** 2 + eps)
