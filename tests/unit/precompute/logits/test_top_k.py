"""Top-k statistics against the float64 definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import Operations

from fusionx.precompute.logits import top_k
from fusionx.precompute.logits.top_k import TopK, top_k_statistics


def statistics(logits: torch.Tensor, labels: torch.Tensor, k: int, vocab: int | None = None) -> TopK:
    """Without the loss of the logits."""
    return top_k_statistics(logits.clone(), labels, k, vocab or logits.shape[-1])


def as_an_accelerator(logits: torch.Tensor, labels: torch.Tensor, k: int, vocab: int | None = None) -> TopK:
    """All at once, and 16 bits as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k, "_IN_CACHES", {})
        return statistics(logits, labels, k, vocab)


def ordered(logits: torch.Tensor, k: int) -> list[list[int]]:
    """The rule, spelled out: value descending, then id ascending."""
    return [sorted(range(len(row)), key=lambda token: (-row[token], token))[:k] for row in logits.tolist()]


@given(st.integers(1, 7), st.integers(2, 400), st.data(), st.sampled_from(["float32", "bfloat16", "float16"]))
@settings(max_examples=80, deadline=None)
def test_statistics_equal_the_float64_definition(n: int, vocab: int, data: st.DataObject, dtype: str) -> None:
    k = data.draw(st.integers(1, min(vocab, 40)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    logits = (torch.randn(n, vocab, generator=generator) * 8).to(getattr(torch, dtype))
    labels = torch.randint(-1, vocab, (n,), generator=generator)
    found = statistics(logits, labels, k)
    exact = torch.log_softmax(logits.double(), dim=-1)
    assert found.ids.tolist() == ordered(logits, k)
    assert torch.allclose(exact.gather(1, found.ids.long()), found.logprobs.double(), atol=1e-5)
    nll = torch.where(labels >= 0, -exact.gather(1, labels.clamp(min=0)[:, None])[:, 0], 0.0)
    assert torch.allclose(found.label_nll.double(), nll, atol=1e-5)
    tail = exact.scatter(1, found.ids.long(), -torch.inf).exp().sum(-1)
    assert torch.allclose(found.tail.double(), tail, rtol=1e-4, atol=0)
    assert [values.dtype for values in found] == [torch.int32] + [torch.float32] * 3
    elsewhere = as_an_accelerator(logits, labels, k)
    assert all(torch.equal(left, right) for left, right in zip(found, elsewhere, strict=True))


@pytest.mark.parametrize("vocab", [20, 100, 1000, 5001])
@pytest.mark.parametrize("values", [1, 2, 40])
def test_of_equal_values_the_lower_ids_come_first(vocab: int, values: int) -> None:
    logits = torch.randint(0, values, (9, vocab), generator=torch.Generator().manual_seed(vocab)) - values / 2
    logits[0] = 0.0
    logits[0, ::2] = -0.0
    found = statistics(logits, torch.zeros(9, dtype=torch.long), 8)
    assert found.ids.tolist() == ordered(logits, 8)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = logits.to(dtype)
        for way in (statistics, as_an_accelerator):
            assert way(narrow, torch.zeros(9, dtype=torch.long), 8).ids.tolist() == ordered(narrow, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", [0, 100])
def test_statistics_of_a_block_take_few_launches_and_wait_for_nothing(dtype: torch.dtype, padding: int) -> None:
    logits, labels = torch.randn(64, 5000 + padding).to(dtype), torch.zeros(64, dtype=torch.long)
    with Operations() as counted:
        as_an_accelerator(logits, labels, 32, 5000)
    assert len(counted.launched) <= 54, counted.launched
    assert [counted.launched.count(name) for name in ("amax", "exp_", "topk", "sort")] == [1 + (padding > 0), 1, 2, 1]


def test_a_value_that_the_host_asks_for_is_noticed() -> None:
    with pytest.raises(AssertionError, match="waits for the device"), Operations():
        torch.ones(3).sum().item()
    with pytest.raises(AssertionError, match="by a mask waits"), Operations():
        torch.ones(3)[torch.ones(3) > 0]


def test_a_tail_that_one_minus_the_top_would_lose_keeps_its_digits() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 3] = 40.0
    found = statistics(logits, torch.tensor([3]), 1)
    assert found.tail.item() == pytest.approx(999 * torch.e**-40, rel=1e-5)


def test_padding_of_the_head_keeps_its_mass_but_never_comes_out() -> None:
    logits = torch.zeros(3, 10)
    logits[:, 8:] = 5.0
    found = statistics(logits, torch.tensor([0, 1, -1]), 8, 8)
    assert int(found.ids.max()) < 8
    assert found.logprobs.exp().sum(-1).tolist() == pytest.approx([8 / (8 + 2 * torch.e**5)] * 3, rel=1e-4)
    logits[:, 8:] = 500.0  # so far above all others that exp would overflow
    assert statistics(logits, torch.tensor([0, 1, -1]), 8, 8).tail.tolist() == [1.0] * 3


@pytest.mark.parametrize("vocab", [9, 300])
def test_padding_does_not_come_out_where_fewer_than_k_tokens_are_possible(vocab: int) -> None:
    logits = torch.full((2, vocab + 40), -torch.inf)
    logits[:, 4] = 1.0
    found = statistics(logits, torch.tensor([4, 4]), 8, vocab)
    assert found.ids.tolist() == [[4, 0, 1, 2, 3, 5, 6, 7]] * 2
    assert found.logprobs.tolist() == [[0.0] + [-torch.inf] * 7] * 2


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
@pytest.mark.parametrize("place", [3, 399])
def test_nan_and_infinity_stay_visible_where_they_are(bad: float, place: int) -> None:
    logits = torch.zeros(4, 400)
    logits[2, place] = bad
    found = statistics(logits, torch.zeros(4, dtype=torch.long), 2, 390)
    assert found.tail.isnan().tolist() == [False, False, True, False]
    assert found.logprobs.isnan().any(-1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("padding", [0, 60])
def test_what_a_cpu_takes_a_few_rows_at_a_time_is_the_same(
    dtype: torch.dtype, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = (torch.randn(11, 700 + padding, generator=torch.Generator().manual_seed(3)) * 4).to(dtype)
    labels = torch.arange(11) - 1
    whole = as_an_accelerator(logits, labels, 9, 700)
    for rows in (1, 2, 3, 50):
        monkeypatch.setattr(top_k, "_IN_CACHES", {"cpu": rows * 760})
        for found, expected in zip(statistics(logits, labels, 9, 700), whole, strict=True):
            assert torch.equal(found, expected), rows


def test_no_positions_at_all() -> None:
    found = statistics(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), 2)
    assert found.ids.shape == (0, 2)
    assert found.label_nll.shape == (0,)
