"""Top-k statistics against the float64 definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import Operations

from fusionx.precompute.logits import top_k
from fusionx.precompute.logits.top_k import TopK, by_kernel, by_torch, top_k_statistics

Way = Callable[..., TopK]
WAYS: tuple[Way, ...] = (by_kernel, by_torch)


def statistics(
    logits: torch.Tensor, labels: torch.Tensor, k: int, vocab: int | None = None, way: Way = by_kernel
) -> TopK:
    """Without the loss of the logits."""
    return way(logits.clone(), labels, k, vocab or logits.shape[-1])


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
    for way in WAYS:
        compare_with_the_definition(statistics(logits, labels, k, way=way), logits, labels)


def compare_with_the_definition(found: TopK, logits: torch.Tensor, labels: torch.Tensor) -> None:
    exact = torch.log_softmax(logits.double(), dim=-1)
    assert found.ids.tolist() == ordered(logits, found.ids.shape[1])
    assert torch.allclose(exact.gather(1, found.ids.long()), found.logprobs.double(), atol=1e-5)
    nll = torch.where(labels >= 0, -exact.gather(1, labels.clamp(min=0)[:, None])[:, 0], 0.0)
    assert torch.allclose(found.label_nll.double(), nll, atol=1e-5)
    tail = exact.scatter(1, found.ids.long(), -torch.inf).exp().sum(-1)
    assert torch.allclose(found.tail.double(), tail, rtol=1e-4, atol=0)
    assert [values.dtype for values in found] == [torch.int32] + [torch.float32] * 3


def test_a_cpu_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    monkeypatch.setattr(top_k, "by_torch", None)
    compare_with_the_definition(statistics(logits, labels, 4, way=top_k_statistics), logits, labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_how_many_threads_share_the_rows_changes_nothing(dtype: torch.dtype) -> None:
    logits = (torch.randn(700, 11, generator=torch.Generator().manual_seed(3)) * 4).to(dtype).t()
    labels, before, found = torch.arange(11) - 1, torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 20):
            torch.set_num_threads(threads)
            found.append(statistics(logits, labels, 9, 690))
    finally:
        torch.set_num_threads(before)
    compare_with_the_definition(statistics(logits, labels, 9), logits, labels)
    assert all(torch.equal(one, other) for way in found[1:] for one, other in zip(found[0], way, strict=True))


@pytest.mark.parametrize("order", [-1, 1])
@pytest.mark.parametrize("k", [1, 40, 2999])
def test_the_order_of_a_vocabulary_does_not_matter(order: int, k: int) -> None:
    """Ascending, every logit enters the highest so far; descending, none does after the first."""
    logits = (torch.arange(3000) * order * 1e-2)[None].repeat(2, 1)
    labels = torch.tensor([0, 2999])
    for way in WAYS:
        compare_with_the_definition(statistics(logits, labels, k, way=way), logits, labels)


@pytest.mark.parametrize("vocab", [20, 100, 1000, 5001])
@pytest.mark.parametrize("values", [1, 2, 40])
def test_of_equal_values_the_lower_ids_come_first(vocab: int, values: int) -> None:
    logits = torch.randint(0, values, (9, vocab), generator=torch.Generator().manual_seed(vocab)) - values / 2
    logits[0] = 0.0
    logits[0, ::2] = -0.0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        narrow = logits.to(dtype)
        for way in WAYS:
            found = statistics(narrow, torch.zeros(9, dtype=torch.long), 8, way=way)
            assert found.ids.tolist() == ordered(narrow, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", [0, 100])
def test_statistics_of_a_block_take_few_launches_and_wait_for_nothing(dtype: torch.dtype, padding: int) -> None:
    logits, labels = torch.randn(64, 5000 + padding).to(dtype), torch.zeros(64, dtype=torch.long)
    with Operations() as counted:
        by_torch(logits, labels, 32, 5000)
    assert len(counted.launched) <= 54, counted.launched
    assert [counted.launched.count(name) for name in ("amax", "exp_", "topk", "sort")] == [1 + (padding > 0), 1, 2, 1]


def test_a_value_that_the_host_asks_for_is_noticed() -> None:
    with pytest.raises(AssertionError, match="waits for the device"), Operations():
        torch.ones(3).sum().item()
    with pytest.raises(AssertionError, match="by a mask waits"), Operations():
        torch.ones(3)[torch.ones(3) > 0]


@pytest.mark.parametrize("way", WAYS)
def test_a_tail_that_one_minus_the_top_would_lose_keeps_its_digits(way: Way) -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 3] = 40.0
    found = statistics(logits, torch.tensor([3]), 1, way=way)
    assert found.tail.item() == pytest.approx(999 * torch.e**-40, rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_padding_of_the_head_keeps_its_mass_but_never_comes_out(way: Way) -> None:
    logits = torch.zeros(3, 10)
    logits[:, 8:] = 5.0
    found = statistics(logits, torch.tensor([0, 1, -1]), 8, 8, way)
    assert int(found.ids.max()) < 8
    assert found.logprobs.exp().sum(-1).tolist() == pytest.approx([8 / (8 + 2 * torch.e**5)] * 3, rel=1e-4)
    logits[:, 8:] = 500.0  # so far above all others that exp would overflow
    assert statistics(logits, torch.tensor([0, 1, -1]), 8, 8, way).tail.tolist() == [1.0] * 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("vocab", [9, 300])
def test_padding_does_not_come_out_where_fewer_than_k_tokens_are_possible(vocab: int, way: Way) -> None:
    logits = torch.full((2, vocab + 40), -torch.inf)
    logits[:, 4] = 1.0
    found = statistics(logits, torch.tensor([4, 4]), 8, vocab, way)
    assert found.ids.tolist() == [[4, 0, 1, 2, 3, 5, 6, 7]] * 2
    assert found.logprobs.tolist() == [[0.0] + [-torch.inf] * 7] * 2


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 3, 399])
@pytest.mark.parametrize("way", WAYS)
def test_nan_and_infinity_stay_visible_where_they_are(bad: float, place: int, way: Way) -> None:
    logits = torch.zeros(4, 400)
    logits[2, place] = bad
    found = statistics(logits, torch.zeros(4, dtype=torch.long), 2, 390, way)
    assert found.tail.isnan().tolist() == [False, False, True, False]
    assert found.logprobs.isnan().any(-1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("way", WAYS)
def test_no_positions_at_all(way: Way) -> None:
    found = statistics(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), 2, way=way)
    assert found.ids.shape == (0, 2)
    assert found.label_nll.shape == (0,)


def test_what_is_no_normal_number_beside_the_highest_may_count_as_none() -> None:
    logits = torch.tensor([[0.0, -86.0, -88.0, -torch.inf]])
    for way in WAYS:
        found = statistics(logits, torch.tensor([2]), 1, way=way)
        assert found.tail.item() == pytest.approx(torch.e**-86, rel=0.2)
        assert found.label_nll.item() == 88.0
