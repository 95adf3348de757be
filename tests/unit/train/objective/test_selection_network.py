"""The selection network's inputs, its gate and its selection."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from fusion_oracles import choose_at, feature_rows, gate_at, random_candidates, weights_at
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusionx.train.config import PRESETS, Feature, Granularity, SelectionConfig
from fusionx.train.objective.fused_head import cross_entropy
from fusionx.train.objective.selection_network import (
    FEATURE_WIDTHS,
    SelectionNetwork,
    candidate_features,
    choose,
    gate,
    normalised,
    pool_by_chunk,
)
from fusionx.train.objective.teacher import Candidates, select, selection_logits

GRANULARITIES: list[Granularity] = ["element", "token", "sequence"]


FEATURES = list(FEATURE_WIDTHS)
WIDTH = sum(FEATURE_WIDTHS[name] for name in SelectionConfig().features)


def network(granularity: Granularity, candidates: int = 3, **changed: Any) -> SelectionNetwork:
    torch.manual_seed(0)
    return SelectionNetwork(candidates, SelectionConfig(granularity=granularity, **changed)).double()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_shapes_and_initial_weights(granularity: Granularity) -> None:
    features = 1 if granularity == "element" else WIDTH
    width = 3 * features
    expected = {
        "linear3": [(2 * width, width), (width, 2 * width), (3, width)],
        "linear1": [(3, width)],
        "conv": [(2 * features, features, 3), (features, 2 * features, 3), (1, features, 3)],
    }
    for layers, shapes in expected.items():
        asn = network(granularity, layers=layers)
        weighty = [layer for layer in asn.layers if not isinstance(layer, torch.nn.GELU)]
        assert [tuple(layer.weight.shape) for layer in weighty] == shapes  # type: ignore[union-attr]
        assert asn(torch.randn(7, 2, 3, features, dtype=torch.float64)).shape == (7, 2, 3)
        for layer in weighty:
            fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(layer.weight)  # type: ignore[arg-type]
            assert layer.weight.abs().max() <= (6 / (fan_in + fan_out)) ** 0.5  # type: ignore[operator, union-attr]
            assert not layer.bias.any()  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("wanted", [FEATURES, FEATURES[::-1], ["aligned"], ["nll_per_byte", "logprobs"]])
@pytest.mark.parametrize("k", [1, 4, 8, 11])
def test_features_are_the_documented_numbers(k: int, wanted: list[Feature]) -> None:
    candidates = random_candidates(k, k=k)
    nll = candidates.nll_per_byte[candidates.chunk_of]
    found = candidate_features(wanted, candidates.probs, candidates.aligned, nll)
    torch.testing.assert_close(found, feature_rows(candidates, wanted), rtol=1e-9, atol=1e-9)


def test_an_unknown_nll_becomes_the_mean() -> None:
    candidates = random_candidates(0, n=1)
    nll = torch.tensor([[0.5, float("nan"), 1.5]], dtype=torch.float64)
    relative = candidate_features(["nll_per_byte"], candidates.probs, candidates.aligned, nll)
    assert relative.flatten().tolist() == [-2.0, 0.0, 2.0]
    nowhere = candidate_features(FEATURES, candidates.probs, candidates.aligned, nll * float("nan"))
    assert torch.isfinite(nowhere).all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_an_unaligned_candidate_stores_is_never_read(granularity: Granularity) -> None:
    base = PRESETS["paper" if granularity == "element" else "fusionx-network"]
    method = base.model_copy(update={"selection": SelectionConfig(granularity=granularity)})
    clean = random_candidates(5)
    dirty = random_candidates(5, garbage_where_unaligned=True)
    label_probs = torch.where(clean.aligned, clean.label_probs, dirty.label_probs)
    dirty = dirty._replace(labels=clean.labels, label_probs=label_probs)
    assert not torch.equal(clean.probs, dirty.probs)
    assert not label_probs[~clean.aligned].isnan().all()
    asn = network(granularity)
    # One log q per vocabulary id, so that the support's values follow the ids.
    logq = torch.log_softmax(torch.randn(6, 14, dtype=torch.float64), -1)
    terms = []
    for candidates in (clean, dirty):
        found = select(method, asn, candidates, 14)
        ids, probs, weights, tail = found.teacher
        support = logq.gather(1, ids.flatten(1).clamp(min=0).long()).reshape(ids.shape)
        fused = (weights * cross_entropy(probs, support, tail)).sum(-1)
        terms.append([fused, *found[1:]])
    for left, right in zip(*terms, strict=True):
        torch.testing.assert_close(left, right)


def test_pooling_is_the_mean_of_each_chunk() -> None:
    features = torch.arange(12.0).reshape(4, 3)
    pooled = pool_by_chunk(features, torch.tensor([0, 2, 2, 2]), 4)
    expected = torch.stack([features[0], torch.zeros(3), features[1:].mean(0), torch.zeros(3)])
    torch.testing.assert_close(pooled, expected)


def test_sequence_gives_a_chunk_one_answer() -> None:
    candidates = random_candidates(0, n=6, chunks=2)
    logits = selection_logits(network("sequence"), candidates)
    for chunk in (0, 1):
        rows = logits[candidates.chunk_of == chunk]
        assert torch.equal(rows, rows[:1].expand_as(rows))
    assert not torch.equal(logits[0], logits[-1])


def test_chunks_of_a_batch_do_not_mix() -> None:
    """A chunk's logits are the same alone and in company."""
    candidates = random_candidates(0, n=6, chunks=2)
    alone = Candidates(
        *(field[3:] for field in candidates[:6]), candidates.nll_per_byte[1:], candidates.chunk_of[3:] - 1
    )
    for granularity in ("token", "sequence"):
        asn = network(granularity)  # type: ignore[arg-type]
        torch.testing.assert_close(selection_logits(asn, candidates)[3:], selection_logits(asn, alone))


def test_gate_without_candidates_is_zero_with_finite_gradients() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    available = torch.tensor([[False] * 3, [True, False, True], [False, True, False], [True] * 3])
    p = gate(logits, available)
    w = normalised(p, choose(p, SelectionConfig()))
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


CHOICES = st.one_of(
    st.floats(0, 0.99).map(lambda tau: SelectionConfig(tau=tau)),
    st.integers(1, 4).map(lambda n: SelectionConfig(choice="top_n", n=n)),
    st.just(SelectionConfig(choice="all")),
)


@settings(max_examples=150, deadline=None)
@given(place=places(), config=CHOICES)
def test_selection_properties(place: tuple[Tensor, Tensor], config: SelectionConfig) -> None:
    logits, available = place
    p = gate(logits, available)
    mask = choose(p, config)
    w = normalised(p, mask)
    anywhere = available.any(-1)
    torch.testing.assert_close(p.sum(-1), anywhere.float())
    torch.testing.assert_close(w.sum(-1), anywhere.float())
    assert not p[~available].any()
    assert not w[~available].any()
    assert not mask[~available].any()
    assert ((w > 0) == mask).all()
    assert (mask.any(-1) == anywhere).all()
    if config.choice == "top_n":
        assert (mask.sum(-1) == (p > 0).sum(-1).clamp(max=config.n)).all()
    if config.choice == "adaptive":
        # Everybody above tau is in; somebody below it only where nobody is above, and then it is the best.
        above = p > config.tau
        assert (mask | ~above).all()
        fallback = mask & ~above
        assert not (fallback.any(-1) & above.any(-1)).any()
        assert (p[fallback] == p.max(-1, keepdim=True).values.expand_as(p)[fallback]).all()
        assert (fallback.sum(-1) <= 1).all()


@settings(max_examples=100, deadline=None)
@given(place=places(), config=CHOICES)
def test_selection_equals_one_place_at_a_time(place: tuple[Tensor, Tensor], config: SelectionConfig) -> None:
    logits, available = place[0].double().clamp(-30, 30), place[1]
    p = gate(logits, available)
    w = normalised(p, choose(p, config))
    for row, there, found in zip(logits, available.tolist(), w, strict=True):
        slow = gate_at(row, there)
        values = sorted(float(value) for value in slow)
        close = any(right - left < 1e-12 for left, right in itertools.pairwise(values))
        if close or any(abs(value - config.tau) < 1e-12 for value in values):
            continue  # which of two equal ones, and on which side of tau, is a matter of rounding
        torch.testing.assert_close(found, torch.stack(weights_at(slow, choose_at(slow, config))), rtol=1e-6, atol=1e-6)
