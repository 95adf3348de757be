"""Positions that only fill up a batch have no part in any loss, gradient or sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fusion_oracles import random_candidates
from hypothesis import given, settings
from hypothesis import strategies as st
from small_steps import VOCAB, assert_close, gradients, linear_head, network, variant
from torch import Tensor

from fusionx.train.objective.fused_head import IGNORED, fused_head, label_nll
from fusionx.train.objective.losses import head_scales, local_totals, selection_loss
from fusionx.train.objective.teacher import Candidates, select

METHODS = {
    "ct": variant("ct"),
    "fusionx-network": variant("fusionx-network"),
    "sequence": variant("fusionx-network", {"granularity": "sequence"}),
    "fusellm": variant("fusellm"),
    "fusellm-avgce": variant("fusellm-avgce"),
    "paper": variant("paper"),
    "fusionx": variant("fusionx"),
}


def filled_up(candidates: Candidates, positions: int) -> Candidates:
    """The same with so many positions more, of a chunk of their own."""
    n, (m, k), chunks = len(candidates.labels), candidates.ids.shape[1:], len(candidates.nll_per_byte)
    more = Candidates(
        torch.full((positions, m, k), -1),
        torch.zeros(positions, m, k, dtype=torch.float64),
        torch.full((positions, m), torch.nan, dtype=torch.float64),
        torch.zeros(positions, m, dtype=torch.bool),
        torch.full((positions,), IGNORED),
        torch.full((positions, m), 1 / m, dtype=torch.float64),
        torch.full((1, m), torch.nan, dtype=torch.float64),
        torch.full((positions,), chunks),
    )
    joined = Candidates(*(torch.cat(pair) for pair in zip(candidates, more, strict=True)))
    assert len(joined.labels) == n + positions
    return joined


def one_step(method: Any, candidates: Candidates, hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Loss, its sums and gradients (hidden, head, selection network), weights and totals."""
    asn = network(method)
    selection = None if method.teacher == "none" else select(method, asn, candidates, VOCAB)
    totals = local_totals([candidates.labels], [selection], 3)
    teacher = None if selection is None else selection.teacher
    scales = head_scales(method, totals)
    head = fused_head(lambda x: x @ weight.T, [weight], hidden, candidates.labels, teacher, *scales, block=4)
    loss = head.loss if selection is None else head.loss + selection_loss(method, selection, totals)
    leaves = [hidden, weight, *(asn.parameters() if asn is not None else ())]
    return (loss, head.lm, head.fuse, totals.vector(), *gradients(loss, leaves))


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), positions=st.integers(1, 9))
def test_they_change_nothing(name: str, seed: int, positions: int) -> None:
    method = METHODS[name]
    candidates = random_candidates(seed)
    hidden, weight = linear_head(seed)
    n = len(candidates.labels)
    plain = one_step(method, candidates, hidden, weight)
    longer = torch.cat([hidden.detach(), torch.randn(positions, hidden.shape[1]).double()]).requires_grad_()
    found = one_step(method, filled_up(candidates, positions), longer, weight)
    of_hidden = found[4]
    assert not of_hidden[n:].any()
    for one, other in zip(plain, (*found[:4], of_hidden[:n], *found[5:]), strict=True):
        assert_close(other, one)


def test_validation_gives_them_no_nll() -> None:
    hidden, weight = linear_head(0)
    labels = torch.tensor([3, IGNORED, 5, 1, IGNORED, 0])
    nll = label_nll(lambda x: x @ weight.T, hidden, labels, block=4)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="none", ignore_index=IGNORED)
    assert_close(nll, expected.detach())
