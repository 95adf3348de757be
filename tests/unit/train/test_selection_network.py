"""The selection network's inputs, its gate and its selection."""

from __future__ import annotations

import pytest
import torch
from fusion_oracles import feature_rows, gate_at, random_candidates, select_at
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.asn import (
    FEATURES_PER_CANDIDATE,
    SelectionNetwork,
    candidate_features,
    gate,
    pool_by_chunk,
    select,
)
from train.config import Granularity, MethodConfig
from train.losses import Candidates, HeadOutput
from train.objective import objective, selection_logits

GRANULARITIES: list[Granularity] = ["element", "token", "sequence"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_shapes_and_initial_weights(granularity: Granularity) -> None:
    asn = SelectionNetwork(3, granularity)
    width = 3 if granularity == "element" else 3 * FEATURES_PER_CANDIDATE
    shapes = [tuple(layer.weight.shape) for layer in asn.layers if isinstance(layer, torch.nn.Linear)]
    assert shapes == [(2 * width, width), (width, 2 * width), (3, width)]
    assert asn(torch.randn(7, 2, width)).shape == (7, 2, 3)
    for layer in asn.layers:
        if isinstance(layer, torch.nn.Linear):
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            assert layer.weight.abs().max() <= bound
            assert not layer.bias.any()


@pytest.mark.parametrize("k", [1, 4, 8, 11])
def test_features_are_the_documented_numbers(k: int) -> None:
    candidates = random_candidates(k, k=k)
    found = candidate_features(candidates.probs, candidates.aligned, candidates.nll_per_byte[candidates.chunk_of])
    assert found.shape == (6, 3 * FEATURES_PER_CANDIDATE)
    torch.testing.assert_close(found, feature_rows(candidates), rtol=1e-9, atol=1e-9)


def test_an_unknown_nll_becomes_the_mean() -> None:
    candidates = random_candidates(0, n=1)
    nll = torch.tensor([[0.5, float("nan"), 1.5]], dtype=torch.float64)
    relative = candidate_features(candidates.probs, candidates.aligned, nll).reshape(3, -1)[:, -1]
    assert relative.tolist() == [-2.0, 0.0, 2.0]
    nowhere = candidate_features(candidates.probs, candidates.aligned, nll * float("nan"))
    assert torch.isfinite(nowhere).all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_an_unaligned_candidate_stores_is_never_read(granularity: Granularity) -> None:
    method = MethodConfig(
        granularity=granularity, tail="renormalise", lambda_select=0 if granularity == "element" else 0.5
    )
    clean = random_candidates(5)
    dirty = random_candidates(5, garbage_where_unaligned=True)._replace(labels=clean.labels)
    assert not torch.equal(clean.probs, dirty.probs)
    torch.manual_seed(0)
    asn = SelectionNetwork(3, granularity).double()
    # One log q per vocabulary id, so that the support's values follow the ids.
    logq = torch.log_softmax(torch.randn(6, 14, dtype=torch.float64), -1)
    terms = []
    for candidates in (clean, dirty):
        support = logq.gather(1, candidates.ids.reshape(6, -1).clamp(min=0)).reshape(candidates.ids.shape)
        terms.append(objective(method, asn, candidates, HeadOutput(logq[:, 0], support), 14))
    for left, right in zip(terms[0], terms[1], strict=True):
        torch.testing.assert_close(left, right)


def test_pooling_is_the_mean_of_each_chunk() -> None:
    features = torch.arange(12.0).reshape(4, 3)
    pooled = pool_by_chunk(features, torch.tensor([0, 2, 2, 2]), 4)
    expected = torch.stack([features[0], torch.zeros(3), features[1:].mean(0), torch.zeros(3)])
    torch.testing.assert_close(pooled, expected)


def test_sequence_gives_a_chunk_one_answer() -> None:
    candidates = random_candidates(0, n=6, chunks=2)
    torch.manual_seed(0)
    logits = selection_logits(SelectionNetwork(3, "sequence").double(), candidates)
    for chunk in (0, 1):
        rows = logits[candidates.chunk_of == chunk]
        assert torch.equal(rows, rows[:1].expand_as(rows))
    assert not torch.equal(logits[0], logits[-1])


def test_chunks_of_a_batch_do_not_mix() -> None:
    """A chunk's logits are the same alone and in company."""
    candidates = random_candidates(0, n=6, chunks=2)
    alone = Candidates(
        *(field[3:] for field in candidates[:4]), candidates.nll_per_byte[1:], candidates.chunk_of[3:] - 1
    )
    for granularity in ("token", "sequence"):
        torch.manual_seed(0)
        asn = SelectionNetwork(3, granularity).double()  # type: ignore[arg-type]
        torch.testing.assert_close(selection_logits(asn, candidates)[3:], selection_logits(asn, alone))


def test_gate_without_candidates_is_zero_with_finite_gradients() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    available = torch.tensor([[False] * 3, [True, False, True], [False, True, False], [True] * 3])
    p = gate(logits, available)
    w, _ = select(p, 0.15)
    assert p[0].tolist() == w[0].tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad((w * torch.randn_like(w)).sum() + p.square().sum(), logits)
    assert torch.isfinite(gradient).all()
    assert not gradient[0].any()
    assert gradient[1, 1] == gradient[2, 0] == gradient[2, 2] == 0


@st.composite
def places(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits [n, M] and availability [n, M]."""
    n, m = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    logit = st.floats(-80, 80, allow_nan=False, width=32)
    logits = draw(st.lists(st.lists(logit, min_size=m, max_size=m), min_size=n, max_size=n))
    available = draw(st.lists(st.lists(st.booleans(), min_size=m, max_size=m), min_size=n, max_size=n))
    return torch.tensor(logits), torch.tensor(available)


@settings(max_examples=100, deadline=None)
@given(place=places(), tau=st.floats(0, 0.99))
def test_selection_properties(place: tuple[Tensor, Tensor], tau: float) -> None:
    logits, available = place
    p = gate(logits, available)
    w, mask = select(p, tau)
    anywhere = available.any(-1)
    torch.testing.assert_close(p.sum(-1), anywhere.float())
    torch.testing.assert_close(w.sum(-1), anywhere.float())
    assert not p[~available].any()
    assert not w[~available].any()
    assert not mask[~available].any()
    assert ((w > 0) == mask).all()
    assert (mask.any(-1) == anywhere).all()
    # Everybody above tau is in; somebody below it only where nobody is above, and then it is the best.
    above = p > tau
    assert (mask | ~above).all()
    fallback = mask & ~above
    assert not (fallback.any(-1) & above.any(-1)).any()
    assert (p[fallback] == p.max(-1, keepdim=True).values.expand_as(p)[fallback]).all()
    assert (fallback.sum(-1) <= 1).all()


@settings(max_examples=60, deadline=None)
@given(place=places(), tau=st.floats(0, 0.99))
def test_selection_equals_one_place_at_a_time(place: tuple[Tensor, Tensor], tau: float) -> None:
    logits, available = place[0].double().clamp(-30, 30), place[1]
    w, _ = select(gate(logits, available), tau)
    for row, there, found in zip(logits, available.tolist(), w, strict=True):
        p = gate_at(row, there)
        if any(abs(float(value) - tau) < 1e-12 for value in p):
            continue
        torch.testing.assert_close(found, torch.stack(select_at(p, tau)), rtol=1e-6, atol=1e-6)
