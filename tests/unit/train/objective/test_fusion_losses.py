"""Losses and objective against dense oracles: values and gradients."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from fusion_oracles import dense_losses, random_candidates
from hypothesis import given, settings
from hypothesis import strategies as st
from small_steps import VOCAB, assert_close, gradients, linear_head, network, sum_of, variant
from torch import Tensor

from fusionx.train.config import PRESETS, Granularity, MethodConfig
from fusionx.train.objective.fused_head import cross_entropy, fused_head, label_nll
from fusionx.train.objective.losses import (
    Totals,
    feed_value,
    head_scales,
    local_totals,
    selection_loss,
    squared_variation,
)
from fusionx.train.objective.selection_network import SelectionNetwork
from fusionx.train.objective.teacher import (
    Candidates,
    Selection,
    avg_ce_weights,
    label_probability,
    min_ce_weights,
    select,
)

PAPERS_LOSSES: dict[str, Any] = {"lambda_select": 0, "lambda_feed": 0.5, "lambda_fuse": 0.1}


METHODS: dict[str, MethodConfig] = {
    **PRESETS,
    "fusionx, tau high": variant("fusionx-network", {"tau": 0.6}),
    "fusionx, tau 0": variant("fusionx-network", {"tau": 0.0}),
    "sequence": variant("fusionx-network", {"granularity": "sequence"}),
    "token, the paper's losses": variant("fusionx-network", tail="renormalise", **PAPERS_LOSSES),
    "sequence, gate through L_fuse": variant("fusionx-network", {"granularity": "sequence"}, **PAPERS_LOSSES),
    "MinCE with a bucket": variant("fusellm", tail="bucket"),
    "two features": variant("fusionx-network", {"features": ["nll_per_byte", "tail"]}),
    "AvgCE with a bucket": variant("fusellm-avgce", tail="bucket"),
    **{
        f"{base}, {option} {value}, {tail}": variant(base, {option: value}, tail=tail, **losses)
        for base, losses, tails in (
            ("fusionx-network", {}, ("bucket",)),
            ("fusionx-network", PAPERS_LOSSES, ("renormalise", "raw", "bucket")),
            ("paper", {}, ("renormalise", "raw")),
        )
        for option, values in (
            ("fusion", ("weighted", "average", "maximum", "unweighted")),
            ("choice", ("adaptive", "top_n", "all")),
            ("layers", ("linear1", "conv")),
            ("feed_over", ("gate", "place")),
            ("tau", (0.5,)),
        )
        for value in values
        for tail in tails
    },
}


class Step(NamedTuple):
    """One step's loss with its graph and its terms, from micro-batches."""

    total: Tensor
    lm: Tensor
    fuse: Tensor
    feed: Tensor
    select: Tensor
    selections: list[Selection]


def sparse_objective(
    method: MethodConfig,
    asn: SelectionNetwork | None,
    micro_batches: list[tuple[Candidates, Tensor]],
    weight: Tensor,
    block: int,
    vocab: int = VOCAB,
) -> Step:
    """As the trainer does it: all selections, their totals, then every micro-batch's losses.

    Args:
        micro_batches: candidates and hidden states [N, d].
    """
    taught = method.teacher != "none"
    selections = [select(method, asn, candidates, vocab) if taught else None for candidates, _ in micro_batches]
    labels = [candidates.labels for candidates, _ in micro_batches]
    m = micro_batches[0][0].aligned.shape[1]
    totals = Totals.from_vector(local_totals(labels, selections, m).vector())
    made = [selection for selection in selections if selection is not None]
    losses = [
        fused_head(
            lambda h: h @ weight.T,
            [weight],
            hidden,
            candidates.labels,
            None if selection is None else selection.teacher,
            *head_scales(method, totals),
            block,
        )
        for selection, (candidates, hidden) in zip(selections, micro_batches, strict=True)
    ]
    total = sum_of([loss.loss for loss in losses]) + sum_of([selection_loss(method, one, totals) for one in made])
    fed = asn is not None and bool(made)
    return Step(
        total,
        sum_of([loss.lm for loss in losses]) / totals.positions.clamp(min=1),
        sum_of([loss.fuse for loss in losses]) / totals.taught.clamp(min=1),
        feed_value(method, sum_of([one.variation for one in made]), totals) if fed else torch.zeros(()).double(),
        sum_of([one.text_nll for one in made]) / totals.scored.clamp(min=1),
        made,
    )


def value_of(step: Step, method: MethodConfig) -> Tensor:
    """Eq. 10 from its terms: the loss itself is right in its gradient only."""
    return (
        method.lambda_lm * step.lm
        + method.lambda_fuse * step.fuse
        + method.lambda_feed * step.feed
        + method.lambda_select * step.select
    )


def parts_of(candidates: Candidates, hidden: Tensor, cut: int) -> list[tuple[Candidates, Tensor]]:
    """The same positions as two micro-batches, which may share a chunk."""
    return [
        (
            Candidates(*(field[at] for field in candidates[:6]), candidates.nll_per_byte, candidates.chunk_of[at]),
            hidden[at],
        )
        for at in (slice(0, cut), slice(cut, None))
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", METHODS)
def test_objective_equals_the_dense_one(name: str, seed: int) -> None:
    method = METHODS[name]
    candidates = random_candidates(seed, m=2 + seed % 3, garbage_where_unaligned=seed % 2 == 1)
    asn = network(method, candidates=2 + seed % 3, seed=seed)
    hidden, weight = linear_head(seed)
    leaves = [hidden, weight, *(asn.parameters() if asn is not None else [])]
    whole = [(candidates, hidden)]
    # A sequence is one chunk: its micro-batches never share one.
    cut = 3 if method.selection.granularity == "sequence" else 1 + seed % 5
    expected = dense_losses(method, asn, candidates, hidden @ weight.T)
    theirs = gradients(expected.total, leaves)
    for micro_batches in (whole, parts_of(candidates, hidden, cut)):
        found = sparse_objective(method, asn, micro_batches, weight, block=4)
        for term in ("lm", "fuse", "feed", "select"):
            assert_close(getattr(found, term).detach(), getattr(expected, term).detach())
        assert_close(value_of(found, method).detach(), expected.total.detach())
        if expected.importances:
            importances = sum((one.importances for one in found.selections), torch.zeros(()))
            assert_close(importances.detach(), torch.stack(expected.importances).detach())
        for left, right in zip(gradients(found.total, leaves), theirs, strict=True):
            assert_close(left, right)


@pytest.mark.parametrize("metric", ["gumbel", "noise"])
def test_random_metrics_draw_in_training_only(metric: str) -> None:
    method = variant("fusionx-network", {"metric": metric}, **PAPERS_LOSSES)
    candidates = random_candidates(0)
    asn = network(method)
    assert asn is not None
    hidden, weight = linear_head(0)
    leaves = [hidden, weight, *asn.parameters()]
    torch.manual_seed(5)
    found = sparse_objective(method, asn, [(candidates, hidden)], weight, block=4)
    torch.manual_seed(5)
    expected = dense_losses(method, asn, candidates, hidden @ weight.T)
    assert_close(found.fuse, expected.fuse.detach())
    for left, right in zip(gradients(found.total, leaves), gradients(expected.total, leaves), strict=True):
        assert_close(left, right)
    again = select(method, asn, candidates, VOCAB).weights
    assert not torch.equal(again, found.selections[0].weights)
    asn.eval()
    still = [select(method, asn, candidates, VOCAB).weights for _ in range(2)]
    assert torch.equal(*still)


@pytest.mark.parametrize("metric", ["gumbel", "noise"])
def test_random_metrics_by_element(metric: str) -> None:
    """All-zero rows draw once per position; without noise's spread and in evaluation they are the closed form's."""
    method = variant("paper", {"metric": metric})
    asn = network(method)
    assert asn is not None
    candidates = random_candidates(2)
    hidden, weight = linear_head(2)
    found = sparse_objective(method, asn, [(candidates, hidden)], weight, block=4)
    for gradient in gradients(found.total, [hidden, weight, *asn.parameters()]):
        assert torch.isfinite(gradient).all()
    asn.eval()
    quiet = sparse_objective(method, asn, [(candidates, hidden)], weight, block=4)
    assert_close(quiet.feed, dense_losses(method, asn, candidates, hidden @ weight.T).feed.detach())


@pytest.mark.parametrize("feed_over", ["weights", "place"])
@pytest.mark.parametrize("granularity", ["element", "token", "sequence"])
def test_batch_without_any_aligned_position(granularity: Granularity, feed_over: str) -> None:
    """L_fuse and L_feed are 0 there, and no gradient is NaN."""
    method = variant(
        "paper" if granularity == "element" else "fusionx-network", {"granularity": granularity, "feed_over": feed_over}
    )
    candidates = random_candidates(1)
    candidates = candidates._replace(
        aligned=torch.zeros_like(candidates.aligned),
        ids=torch.full_like(candidates.ids, -1),
        probs=torch.zeros_like(candidates.probs),
    )
    asn = network(method)
    assert asn is not None
    hidden, weight = linear_head(1)
    found = sparse_objective(method, asn, [(candidates, hidden)], weight, block=4)
    assert float(found.fuse) == float(found.feed.detach()) == float(found.select.detach()) == 0
    assert_close(found.total, found.lm)
    for gradient in gradients(found.total, [hidden, weight, *asn.parameters()]):
        assert torch.isfinite(gradient).all()


def test_batch_without_any_next_token() -> None:
    """Chunks of one token predict nothing: a loss of 0 with gradients, not NaN."""
    for method in PRESETS.values():
        whole = random_candidates(0)
        empty = Candidates(*(field[:0] for field in whole[:6]), whole.nll_per_byte, whole.chunk_of[:0])
        asn = network(method)
        hidden, weight = linear_head(0, n=0)
        found = sparse_objective(method, asn, [(empty, hidden)], weight, block=4)
        assert float(found.total.detach()) == 0
        assert not gradients(found.total, [weight])[0].any()
        assert len(label_nll(lambda h: h @ weight.T, hidden, empty.labels, 4)) == 0  # noqa: B023  # called at once


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6), tail=st.sampled_from(["bucket", "renormalise"]))
def test_cross_entropy_is_least_where_the_target_agrees(seed: int, k: int, tail: str) -> None:
    """Gibbs' inequality on the (coarse-grained or renormalised) distributions: no target beats the teacher itself."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.softmax(2 * torch.randn(VOCAB, generator=generator, dtype=torch.float64), -1)
    top = teacher.topk(k)
    probs, ids = top.values[None, None], top.indices[None, None]

    def against(q: Tensor) -> float:
        return float(cross_entropy(probs, q.log()[ids], tail))

    best = teacher
    if tail == "renormalise":
        best = torch.full_like(teacher, 1e-12)
        best[top.indices] = top.values / top.values.sum()
    other = torch.softmax(torch.randn(VOCAB, generator=generator, dtype=torch.float64), -1)
    assert against(best) <= against(other) + 1e-9


def test_bucket_holds_the_target_at_the_teacher() -> None:
    """At q = P the bucket loss has no gradient, whatever was cut off; the renormalised one pulls mass inside."""
    z = torch.randn(VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    top = torch.softmax(z.detach(), -1).topk(3)
    probs, ids = top.values[None, None], top.indices[None, None]
    for tail, still in (("bucket", True), ("renormalise", False)):
        loss = cross_entropy(probs, torch.log_softmax(z, -1)[ids], tail).sum()
        assert (gradients(loss, [z])[0].abs().max() < 1e-9) == still


def test_bucket_survives_rounding() -> None:
    """Stored masses over 1 (fp16) and a target that has put everything inside: finite, gradients too."""
    z = torch.tensor([60.0, 0.0, 0.0, 0.0], requires_grad=True)
    ids = torch.tensor([[[0, 1]]])
    for probs in (torch.tensor([[[0.9, 0.1005]]]), torch.tensor([[[0.5, 0.1]]])):
        loss = cross_entropy(probs, torch.log_softmax(z, -1)[ids], "bucket").sum()
        assert torch.isfinite(loss)
        assert torch.isfinite(gradients(loss, [z])[0]).all()


def test_label_probability_known_and_unknown() -> None:
    """Exact wherever it was stored, even where k cut the label off; an even share of the tail where it was not."""
    unknown = float("nan")
    candidates = Candidates(
        ids=torch.tensor([[[3, 5, -1], [2, 1, 0], [2, 1, 0], [-1, -1, -1]]]),
        probs=torch.tensor([[[0.6, 0.2, 0.0], [0.5, 0.3, 0.1], [0.5, 0.3, 0.1], [0.0, 0.0, 0.0]]]),
        label_probs=torch.tensor([[0.2, 0.07, unknown, unknown]]),
        aligned=torch.tensor([[True, True, True, False]]),
        labels=torch.tensor([5]),
        shares=torch.full((1, 4), 0.25),
        nll_per_byte=torch.ones(1, 4),
        chunk_of=torch.tensor([0]),
    )
    torch.testing.assert_close(label_probability(candidates, 10), torch.tensor([[0.2, 0.07, 0.1 / 7, 0.1]]))


def test_an_entry_that_underflowed_shares_in_the_tail() -> None:
    """An id stored with probability 0 (fp16) is outside the support, as in the bucket loss."""
    candidates = random_candidates(0, n=1, m=1, k=2)
    candidates = candidates._replace(
        ids=torch.tensor([[[3, 5]]]),
        probs=torch.tensor([[[0.9, 0.0]]]),
        label_probs=torch.tensor([[float("nan")]]),
        labels=torch.tensor([7]),
    )
    torch.testing.assert_close(label_probability(candidates, 11), torch.tensor([[0.1 / 10]]))


def test_selector_loss_by_hand() -> None:
    """One candidate at each place, so p = 1: the mean of -log P(next token) over the places with a candidate."""
    candidates = random_candidates(0, n=3, m=1)._replace(
        ids=torch.tensor([[[3, 5]], [[4, 6]], [[7, 8]]]),
        probs=torch.tensor([[[0.4, 0.2]], [[0.9, 0.1]], [[0.5, 0.1]]], dtype=torch.float64),
        label_probs=torch.tensor([[0.2], [0.9], [0.5]], dtype=torch.float64),
        aligned=torch.tensor([[True], [False], [True]]),
        labels=torch.tensor([5, 4, 7]),
    )
    method = PRESETS["fusionx-network"]
    found = select(method, network(method, candidates=1), candidates, VOCAB)
    assert int(found.scored) == 2
    assert_close(found.text_nll.detach(), -torch.tensor([0.2, 0.5], dtype=torch.float64).log().sum())


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.floats(0.5, 50))
def test_squared_variation_ignores_scale(values: list[float], scale: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    expected = x.var(correction=0) / x.mean() ** 2
    torch.testing.assert_close(squared_variation(x), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(squared_variation(scale * x), expected, rtol=1e-4, atol=1e-6)


def test_min_ce_takes_the_lowest_per_byte_where_it_is_aligned() -> None:
    candidates = random_candidates(0, n=4)._replace(
        nll_per_byte=torch.tensor([[0.9, 0.5, 0.7], [0.2, 0.5, 0.7]]),
        aligned=torch.tensor([[True, True, True], [True, False, True], [True, True, False], [False, True, True]]),
        chunk_of=torch.tensor([0, 0, 1, 1]),
    )
    expected = [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert min_ce_weights(candidates).tolist() == expected


def test_min_ce_never_takes_a_candidate_that_scored_nothing() -> None:
    """A chunk that is one token for a tokenizer has no NLL there; 0 nats would always be the lowest."""
    unknown = float("nan")
    candidates = random_candidates(0, n=4)._replace(
        nll_per_byte=torch.tensor([[unknown, 0.5, 0.7], [unknown, unknown, 0.7]]),
        aligned=torch.ones(4, 3, dtype=torch.bool),
        chunk_of=torch.tensor([0, 0, 1, 1]),
    )
    assert min_ce_weights(candidates).argmax(-1).tolist() == [1, 1, 2, 2]


def test_avg_ce_is_a_softmax_of_the_nlls() -> None:
    candidates = random_candidates(0, n=2, m=3, chunks=1)._replace(
        nll_per_byte=torch.tensor([[0.5, 1.0, float("nan")]]),
        aligned=torch.tensor([[True, True, True], [False, True, True]]),
        chunk_of=torch.tensor([0, 0]),
    )
    found = avg_ce_weights(candidates)
    assert found[0].tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2)), 0])
    assert found[1].tolist() == [0, 1, 0]
