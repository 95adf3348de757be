"""Losses and objective against dense oracles, values and gradients; the head's blocks and what they keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fusion_oracles import dense_losses, random_candidates
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.asn import SelectionNetwork
from train.config import PRESETS, Granularity, MethodConfig
from train.losses import (
    Candidates,
    fuse_elements,
    label_probability,
    run_head,
    selector_loss,
    source_cross_entropy,
    squared_variation,
)
from train.objective import Objective, min_ce_weights, objective

VOCAB, WIDTH = 14, 5
METHODS: dict[str, MethodConfig] = {
    **PRESETS,
    "paper, tau high": PRESETS["paper"].model_copy(update={"tau": 0.6}),
    "fusionx, tau high": PRESETS["fusionx"].model_copy(update={"tau": 0.6}),
    "fusionx, tau 0": PRESETS["fusionx"].model_copy(update={"tau": 0.0}),
    "sequence": MethodConfig(granularity="sequence"),
    "token, the paper's losses": MethodConfig(tail="renormalise", lambda_select=0, lambda_feed=0.5, lambda_fuse=0.1),
    "sequence, bucket, gate through L_fuse": MethodConfig(granularity="sequence", lambda_select=0, lambda_feed=0.5),
    "MinCE with a bucket": MethodConfig(teacher="min_ce", lambda_feed=0, lambda_select=0),
}


def network(method: MethodConfig, candidates: int = 3, seed: int = 0) -> SelectionNetwork | None:
    """A selection network in float64 whose outputs spread enough for tau to matter."""
    if method.teacher != "asn":
        return None
    torch.manual_seed(seed)
    asn = SelectionNetwork(candidates, method.granularity).double()
    with torch.no_grad():
        for parameter in asn.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return asn


def linear_head(seed: int, n: int = 6) -> tuple[Tensor, Tensor]:
    """hidden [N, d] and the head's weight [V, d], float64 leaves."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, weight


def sparse_objective(
    method: MethodConfig,
    asn: SelectionNetwork | None,
    candidates: Candidates,
    hidden: Tensor,
    weight: Tensor,
    block: int,
) -> Objective:
    used = None if method.teacher == "none" else candidates
    head = run_head(lambda h: h @ weight.T, hidden, candidates.labels, None if used is None else used.ids, block)
    return objective(method, asn, used, head, VOCAB)


def gradients(total: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", METHODS)
def test_objective_equals_the_dense_one(name: str, seed: int) -> None:
    method = METHODS[name]
    candidates = random_candidates(seed, garbage_where_unaligned=seed % 2 == 1)
    asn = network(method, seed=seed)
    hidden, weight = linear_head(seed)
    leaves = [hidden, weight, *(asn.parameters() if asn is not None else [])]
    found = sparse_objective(method, asn, candidates, hidden, weight, block=4)
    expected = dense_losses(method, asn, candidates, hidden @ weight.T)
    for term in ("total", "lm", "fuse", "feed", "select"):
        assert_close(getattr(found, term), getattr(expected, term).detach() if term != "total" else expected.total)
    for ours, theirs in zip(gradients(found.total, leaves), gradients(expected.total, leaves), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("seed", range(6))
def test_elements_equal_the_full_tensor(seed: int) -> None:
    """Importances too, whose all-zero rows are counted in closed form, and their gradients."""
    method = PRESETS["paper"]
    candidates = random_candidates(seed, m=2 + seed % 3)
    asn = network(method, candidates=2 + seed % 3, seed=seed)
    assert asn is not None
    hidden, weight = linear_head(seed)
    logits = hidden @ weight.T
    expected = dense_losses(method, asn, candidates, logits)
    logq = run_head(lambda h: h @ weight.T, hidden, candidates.labels, candidates.ids, 3).support_logq
    found = fuse_elements(asn, candidates, logq, method.tau, VOCAB)
    assert_close(found.importances, torch.stack(expected.importances))
    aligned = candidates.aligned.any(-1)
    assert_close(found.cross_entropy[aligned].mean(), expected.fuse)
    assert not found.cross_entropy[~aligned].any()
    probe = torch.linspace(-1, 2, len(found.importances), dtype=torch.float64)
    leaves = list(asn.parameters())
    ours = gradients((found.importances * probe).sum(), leaves)
    theirs = gradients((torch.stack(expected.importances) * probe).sum(), leaves)
    for left, right in zip(ours, theirs, strict=True):
        assert_close(left, right)


@pytest.mark.parametrize("granularity", ["element", "token", "sequence"])
def test_batch_without_any_aligned_position(granularity: Granularity) -> None:
    """L_fuse and L_feed are 0 there, and no gradient is NaN."""
    method = PRESETS["paper"] if granularity == "element" else MethodConfig(granularity=granularity)
    candidates = random_candidates(1)
    candidates = candidates._replace(
        aligned=torch.zeros_like(candidates.aligned),
        ids=torch.full_like(candidates.ids, -1),
        probs=torch.zeros_like(candidates.probs),
    )
    asn = network(method)
    assert asn is not None
    hidden, weight = linear_head(1)
    found = sparse_objective(method, asn, candidates, hidden, weight, block=4)
    assert float(found.fuse) == float(found.feed) == float(found.select) == 0
    assert_close(found.total, found.lm)
    for gradient in gradients(found.total, [hidden, weight, *asn.parameters()]):
        assert torch.isfinite(gradient).all()


def test_batch_without_any_next_token() -> None:
    """Chunks of one token predict nothing: a loss of 0 with gradients, not NaN."""
    for method in PRESETS.values():
        whole = random_candidates(0)
        empty = Candidates(*(field[:0] for field in whole[:4]), whole.nll_per_byte, whole.chunk_of[:0])
        asn = network(method)
        hidden, weight = linear_head(0, n=0)
        found = sparse_objective(method, asn, empty, hidden, weight, block=4)
        assert float(found.total.detach()) == 0
        assert not gradients(found.total, [weight])[0].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6), tail=st.sampled_from(["bucket", "renormalise"]))
def test_cross_entropy_is_least_where_the_target_agrees(seed: int, k: int, tail: str) -> None:
    """Gibbs' inequality on the (coarse-grained or renormalised) distributions: no target beats the teacher itself."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.softmax(2 * torch.randn(VOCAB, generator=generator, dtype=torch.float64), -1)
    top = teacher.topk(k)
    probs, ids = top.values[None, None], top.indices[None, None]

    def against(q: Tensor) -> float:
        return float(source_cross_entropy(probs, q.log()[ids], tail))

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
        loss = source_cross_entropy(probs, torch.log_softmax(z, -1)[ids], tail).sum()
        assert (gradients(loss, [z])[0].abs().max() < 1e-9) == still


def test_bucket_survives_rounding() -> None:
    """Stored masses over 1 (fp16) and a target that has put everything inside: finite, gradients too."""
    z = torch.tensor([60.0, 0.0, 0.0, 0.0], requires_grad=True)
    ids = torch.tensor([[[0, 1]]])
    for probs in (torch.tensor([[[0.9, 0.1005]]]), torch.tensor([[[0.5, 0.1]]])):
        loss = source_cross_entropy(probs, torch.log_softmax(z, -1)[ids], "bucket").sum()
        assert torch.isfinite(loss)
        assert torch.isfinite(gradients(loss, [z])[0]).all()


def test_label_probability_inside_and_outside() -> None:
    candidates = Candidates(
        ids=torch.tensor([[[3, 5, -1], [2, 1, 0], [-1, -1, -1]]]),
        probs=torch.tensor([[[0.6, 0.2, 0.0], [0.5, 0.3, 0.1], [0.0, 0.0, 0.0]]]),
        aligned=torch.tensor([[True, True, False]]),
        labels=torch.tensor([5]),
        nll_per_byte=torch.ones(1, 3),
        chunk_of=torch.tensor([0]),
    )
    torch.testing.assert_close(label_probability(candidates, 10), torch.tensor([[0.2, 0.1 / 7, 0.1]]))


def test_label_probability_of_an_entry_that_underflowed() -> None:
    """An id stored with probability 0 (fp16) is outside the support, as in the bucket loss."""
    candidates = random_candidates(0, n=1, m=1, k=2)
    candidates = candidates._replace(
        ids=torch.tensor([[[3, 5]]]), probs=torch.tensor([[[0.9, 0.0]]]), labels=torch.tensor([5])
    )
    torch.testing.assert_close(label_probability(candidates, 11), torch.tensor([[0.1 / 10]]))


def test_selector_loss_by_hand() -> None:
    p = torch.tensor([[0.25, 0.75], [0.0, 0.0], [1.0, 0.0]])
    gold = torch.tensor([[0.4, 0.2], [0.9, 0.9], [0.5, 0.1]])
    expected = -(torch.tensor(0.25).log() + torch.tensor(0.5).log()) / 2
    torch.testing.assert_close(selector_loss(p, gold, torch.tensor([True, False, True])), expected)


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


@pytest.mark.parametrize("block", [1, 2, 3, 5, 6, 7, 1000])
def test_head_blocks_change_nothing(block: int) -> None:
    candidates = random_candidates(2)
    hidden, weight = linear_head(2)
    logits = hidden @ weight.T
    logq = torch.log_softmax(logits, -1)
    expected_nll = -logq[torch.arange(6), candidates.labels]
    expected_support = logq.gather(1, candidates.ids.reshape(6, -1).clamp(min=0)).reshape(candidates.ids.shape)
    found = run_head(lambda h: h @ weight.T, hidden, candidates.labels, candidates.ids, block)
    assert_close(found.label_nll, expected_nll)
    assert_close(found.support_logq, expected_support)
    probe = torch.randn(candidates.ids.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = gradients(found.label_nll.sum() + (found.support_logq * probe).sum(), [hidden, weight])
    theirs = gradients(expected_nll.sum() + (expected_support * probe).sum(), [hidden, weight])
    for left, right in zip(ours, theirs, strict=True):
        assert_close(left, right)


def test_head_upcasts_halves_only() -> None:
    labels = torch.tensor([0, 1])
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        found = run_head(lambda h: h, torch.randn(2, VOCAB, dtype=dtype), labels, None, 8)
        assert found.label_nll.dtype == expected
        assert found.support_logq.shape == (2, 0, 0)


def saved_sizes(compute: Callable[[], Tensor]) -> list[int]:
    """Element counts of every tensor that the graph of `compute` keeps for its backward."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sizes


@pytest.mark.parametrize("name", ["ct", "fusellm", "fusionx"])
def test_no_logits_are_kept_for_backward(name: str) -> None:
    n, vocab, width, block = 96, 512, 8, 16
    method = PRESETS[name]
    candidates = random_candidates(0, n=n, vocab=vocab)
    used = None if name == "ct" else candidates
    asn = network(method)
    torch.manual_seed(0)
    hidden = torch.randn(n, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocab, width, dtype=torch.float64, requires_grad=True)
    rows: list[int] = []

    def head(h: Tensor) -> Tensor:
        rows.append(len(h))
        return h @ weight.T

    def blocked() -> Tensor:
        out = run_head(head, hidden, candidates.labels, None if used is None else used.ids, block)
        return objective(method, asn, used, out, vocab).total

    def naive() -> Tensor:
        return torch.nn.functional.cross_entropy(head(hidden), candidates.labels)

    assert max(saved_sizes(naive)) >= n * vocab  # the measurement sees what it must see
    rows.clear()
    assert max(saved_sizes(blocked)) < block * vocab
    blocked().backward()
    assert max(rows) <= block
