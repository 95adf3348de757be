"""Projection against a dictionary oracle, and conservation of mass."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.projection import project
from align.vocab_map import VocabMap


def map_of(target_ids: list[int]) -> VocabMap:
    ids = np.array(target_ids, np.int32)
    return VocabMap(ids, np.zeros(len(ids), np.uint8), np.zeros(len(ids), np.int32), "exact", "s", "t")


def oracle(
    ids: np.ndarray, logprobs: np.ndarray, tail: float, target_ids: list[int], k_out: int
) -> list[tuple[int, float]]:
    """One row by a dictionary: scale to 1 - tail, map, sum, sort by descending probability and ascending id, cut."""
    mass = np.exp(logprobs.astype(np.float64))
    mass *= (1.0 - float(tail)) / mass.sum() if mass.sum() else 0.0
    summed: dict[int, float] = defaultdict(float)
    for source_id, probability in zip(ids.tolist(), mass, strict=True):
        if 0 <= source_id < len(target_ids) and target_ids[source_id] >= 0:
            summed[target_ids[source_id]] += probability
    ranked = sorted((-float(np.float32(p)), target) for target, p in summed.items() if np.float32(p) > 0)
    return [(target, -p) for p, target in ranked[:k_out]]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_equals_the_dictionary_oracle(data: st.DataObject) -> None:
    size, k, rows = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    k_out = data.draw(st.integers(1, 10))
    target_ids = data.draw(st.lists(st.integers(-1, 6), min_size=size, max_size=size))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    top_ids = generator.integers(-1, size + 2, (rows, k)).astype(np.int32)
    mass = generator.dirichlet(np.ones(k + 1), rows)[:, :k] * generator.choice([1.0, 0.5, 0.0], (rows, 1))
    mass = np.round(mass, 1) if data.draw(st.booleans()) else mass  # rounded: many ties and zeros
    with np.errstate(divide="ignore"):
        logprobs = np.log(mass).astype(data.draw(st.sampled_from([np.float16, np.float32])))
    top_tail = np.where(mass.sum(axis=1) > 0, 1 - mass.sum(axis=1), 1).astype(np.float16)
    source_index = generator.integers(-1, rows, data.draw(st.integers(0, 9)))
    ids, probs, tail = project(top_ids, logprobs, top_tail, source_index, map_of(target_ids), k_out)

    assert (ids.dtype, probs.dtype, tail.dtype) == (np.int32, np.float32, np.float32)
    assert ids.shape == probs.shape == (len(source_index), k_out)
    np.testing.assert_allclose(probs.sum(axis=1, dtype=np.float64) + tail, 1.0, atol=1e-5)
    assert np.all(tail >= 0)
    for position, row in enumerate(source_index):
        wanted = [] if row < 0 else oracle(top_ids[row], logprobs[row], top_tail[row], target_ids, k_out)
        padding = [(-1, 0.0)] * (k_out - len(wanted))
        found = list(zip(ids[position].tolist(), probs[position].tolist(), strict=True))
        assert [target for target, _ in found] == [target for target, _ in wanted + padding]
        np.testing.assert_allclose([p for _, p in found], [p for _, p in wanted + padding], rtol=1e-6)


def test_collisions_are_summed_and_drops_go_to_the_tail() -> None:
    top_ids = np.array([[0, 1, 2, 3]], np.int32)
    logprobs = np.log(np.array([[0.4, 0.3, 0.2, 0.05]], np.float32))
    ids, probs, tail = project(top_ids, logprobs, np.array([0.05]), np.array([0, -1]), map_of([5, 2, 5, -1]), 3)
    assert ids.tolist() == [[5, 2, -1], [-1, -1, -1]]
    np.testing.assert_allclose(probs, [[0.6, 0.3, 0.0], [0.0, 0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(tail, [0.1, 1.0], rtol=1e-5)


def test_what_is_cut_off_goes_to_the_tail() -> None:
    logprobs = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    ids, _, tail = project(np.array([[0, 1, 2]]), logprobs, np.zeros(1), np.array([0]), map_of([0, 1, 2]), 1)
    assert ids.tolist() == [[0]]
    assert tail[0] == pytest.approx(0.5)


@pytest.mark.parametrize("probability", [0.2502, 0.2498, 0.1])
def test_the_tail_is_the_sources_own_not_what_rounded_entries_leave(probability: float) -> None:
    """The true tail is 2^-10; fp16 log-probabilities sum to something else, here far off in either direction."""
    logprobs = np.log(np.full((1, 4), probability, np.float32)).astype(np.float16)
    tail_in = np.array([2.0**-10], np.float16)
    _, probs, tail = project(np.array([[0, 1, 2, 3]]), logprobs, tail_in, np.array([0]), map_of([0, 1, 2, 3]), 4)
    assert tail[0] == pytest.approx(2.0**-10, abs=1e-7)
    assert probs.sum(dtype=np.float64) == pytest.approx(1 - 2.0**-10, abs=1e-7)


def test_ties_are_ordered_by_id() -> None:
    logprobs = np.log(np.full((1, 3), 0.25, np.float32))
    ids, _, _ = project(np.array([[0, 1, 2]]), logprobs, np.array([0.25]), np.array([0]), map_of([9, 3, 6]), 3)
    assert ids.tolist() == [[3, 6, 9]]


def test_no_rows() -> None:
    nothing = np.zeros((0, 4))
    ids, probs, tail = project(nothing.astype(np.int32), nothing, np.zeros(0), np.zeros(0, np.int64), map_of([0]), 2)
    assert ids.shape == probs.shape == (0, 2)
    assert tail.shape == (0,)
    ids, _, tail = project(nothing.astype(np.int32), nothing, np.zeros(0), np.array([-1]), map_of([0]), 2)
    assert ids.tolist() == [[-1, -1]]
    assert tail.tolist() == [1.0]
