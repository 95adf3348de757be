"""Top-k statistics against the float64 definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precompute import top_k
from precompute.top_k import top_k_statistics


@given(st.integers(1, 7), st.integers(2, 40), st.data(), st.sampled_from(["float32", "bfloat16", "float16"]))
@settings(max_examples=60, deadline=None)
def test_statistics_equal_the_float64_definition(n: int, vocab: int, data: st.DataObject, dtype: str) -> None:
    k = data.draw(st.integers(1, vocab))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    logits = (torch.randn(n, vocab, generator=generator) * 8).to(getattr(torch, dtype))
    labels = torch.randint(-1, vocab, (n,), generator=generator)
    found = top_k_statistics(logits, labels, k, vocab)
    exact = torch.log_softmax(logits.double(), dim=-1)
    assert torch.allclose(found.logprobs.double(), exact.topk(k).values, atol=1e-5)
    assert torch.allclose(exact.gather(1, found.ids), found.logprobs.double(), atol=1e-5)
    assert all(len(set(row)) == k for row in found.ids.tolist())
    assert (found.logprobs[:, 1:] <= found.logprobs[:, :-1]).all()
    nll = torch.where(labels >= 0, -exact.gather(1, labels.clamp(min=0)[:, None])[:, 0], 0.0)
    assert torch.allclose(found.label_nll.double(), nll, atol=1e-5)
    assert found.logprobs.dtype == found.label_nll.dtype == torch.float32


def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = torch.randn(50, 11), torch.randint(0, 11, (50,))
    whole = top_k_statistics(logits, labels, 4, 11)
    monkeypatch.setattr(top_k, "_BLOCK_VALUES", 33)
    for left, right in zip(whole, top_k_statistics(logits, labels, 4, 11), strict=True):
        assert torch.equal(left, right)


def test_padding_of_the_head_keeps_its_mass_but_never_comes_out() -> None:
    logits = torch.zeros(3, 10)
    logits[:, 8:] = 5.0
    found = top_k_statistics(logits, torch.tensor([0, 1, -1]), 8, 8)
    assert int(found.ids.max()) < 8
    assert found.logprobs.exp().sum(-1).tolist() == pytest.approx([8 / (8 + 2 * torch.e**5)] * 3, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    logits = torch.zeros(4, 5)
    logits[2, 3] = bad
    with pytest.raises(FloatingPointError):
        top_k_statistics(logits, torch.zeros(4, dtype=torch.long), 2, 5)


def test_masked_tokens_are_no_error() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 1.0]])
    found = top_k_statistics(logits, torch.tensor([0]), 2, 3)
    assert found.ids.tolist() == [[2, 0]]


def test_no_positions_at_all() -> None:
    found = top_k_statistics(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), 2, 5)
    assert found.ids.shape == (0, 2)
    assert found.label_nll.shape == (0,)
