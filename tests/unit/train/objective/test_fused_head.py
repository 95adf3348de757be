"""The fused head: its blocks change nothing, and no logits are kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fusion_oracles import random_candidates
from small_steps import VOCAB, WIDTH, assert_close, gradients, linear_head, network
from torch import Tensor

from fusionx.train.config import PRESETS
from fusionx.train.objective.fused_head import cross_entropy, fused_head, label_nll
from fusionx.train.objective.teacher import Teacher, select


@pytest.mark.parametrize("block", [1, 2, 3, 5, 6, 7, 1000])
def test_head_blocks_change_nothing(block: int) -> None:
    """Against whole logits: values and every gradient, the scales' too in what they scale."""
    candidates = random_candidates(2)
    hidden, weight = linear_head(2)
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    probs = candidates.probs.clone().requires_grad_()
    leaves = [hidden, weight, probs, weights]
    for tail in ("bucket", "renormalise", "raw"):
        logq = torch.log_softmax(hidden @ weight.T, -1)
        nll = -logq[torch.arange(6), candidates.labels]
        assert_close(label_nll(lambda h: h @ weight.T, hidden, candidates.labels, block), nll.detach())
        support = logq.gather(1, candidates.ids.reshape(6, -1).clamp(min=0).long()).reshape(candidates.ids.shape)
        fuse = (weights * cross_entropy(probs, support, tail)).sum()  # type: ignore[arg-type]
        expected = gradients(0.3 * nll.sum() + 0.7 * fuse, leaves)
        teacher = Teacher(candidates.ids, probs, weights, tail)  # type: ignore[arg-type]
        found = fused_head(lambda h: h @ weight.T, [weight], hidden, candidates.labels, teacher, 0.3, 0.7, block)
        assert_close((found.lm, found.fuse), (nll.sum().detach(), fuse.detach()))
        assert_close(found.loss.detach(), (0.3 * nll.sum() + 0.7 * fuse).detach())
        # A later factor (the number of devices) reaches the gradients, too.
        for ours, theirs in zip(gradients(2 * found.loss, leaves), expected, strict=True):
            assert_close(ours, 2 * theirs)


def test_the_heads_backward_runs_once() -> None:
    candidates = random_candidates(2)
    hidden, weight = linear_head(2)
    loss = fused_head(lambda h: h @ weight.T, [weight], hidden, candidates.labels, None, 1.0, 0.0, 4).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    candidates = random_candidates(2)
    hidden, weight = linear_head(2)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    trained = weight if frozen == "hidden" else hidden
    parameters = [weight] if weight.requires_grad else []
    found = fused_head(lambda h: h @ weight.T, parameters, hidden, candidates.labels, None, 1.0, 0.0, 4)
    (ours,) = torch.autograd.grad(found.loss, [trained])
    nll = torch.nn.functional.cross_entropy(hidden @ weight.T, candidates.labels, reduction="sum")
    assert_close(ours, torch.autograd.grad(nll, [trained])[0])


def test_halves_are_summed_in_full_precision() -> None:
    """bf16 hidden states and head: the loss is the fp32 one of the same logits; gradients come back in bf16."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, WIDTH, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator).bfloat16().requires_grad_()
    labels = torch.randint(0, VOCAB, (64,), generator=generator)
    found = fused_head(lambda h: h @ weight.T, [weight], hidden, labels, None, 1.0, 0.0, 4)
    expected = torch.nn.functional.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum")
    torch.testing.assert_close(found.loss, expected)
    ours, theirs = (gradients(loss, [hidden, weight]) for loss in (found.loss, expected))
    for left, right in zip(ours, theirs, strict=True):
        assert left.dtype == torch.bfloat16
        torch.testing.assert_close(left, right, rtol=0.05, atol=0.05)


def saved_sizes(compute: Callable[[], Tensor]) -> list[int]:
    """Element counts of every tensor that the graph of `compute` keeps for its backward."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sizes


@pytest.mark.parametrize("name", ["ct", "fusellm", "fusionx-network", "paper"])
def test_no_logits_are_kept_for_backward(name: str) -> None:
    n, vocab, width, block = 96, 512, 8, 16
    method = PRESETS[name]
    candidates = random_candidates(0, n=n, vocab=vocab)
    asn = network(method)
    torch.manual_seed(0)
    hidden = torch.randn(n, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocab, width, dtype=torch.float64, requires_grad=True)
    rows: list[int] = []

    def head(h: Tensor) -> Tensor:
        rows.append(len(h))
        return h @ weight.T

    selection = None if name == "ct" else select(method, asn, candidates, vocab)

    def blocked() -> Tensor:
        teacher = None if selection is None else selection.teacher
        return fused_head(head, [weight], hidden, candidates.labels, teacher, 1.0, 1.0, block).loss

    def naive() -> Tensor:
        return torch.nn.functional.cross_entropy(head(hidden), candidates.labels)

    assert max(saved_sizes(naive)) >= n * vocab  # the measurement sees what it must see
    rows.clear()
    assert max(saved_sizes(blocked), default=0) < block * vocab
    assert max(rows) <= block
