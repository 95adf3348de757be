"""Projection against a dictionary oracle, and conservation of mass."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx.align.projection import project
from fusionx.align.vocabulary.vocab_map import VocabMap
from fusionx.contract.shards.codec import Distributions


def map_of(target_ids: list[int]) -> VocabMap:
    ids = np.array(target_ids, np.int32)
    return VocabMap(ids, np.zeros(len(ids), np.uint8), np.zeros(len(ids), np.int32), "mined", "s", "t")


def source_of(ids: list[list[int]], probs: list[list[float]], tail: list[float]) -> Distributions:
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array(probs, np.float32))
    counts = np.full(len(ids), logprobs.shape[1] if len(ids) else 0)
    return Distributions.from_padded(np.array(ids).reshape(logprobs.shape), logprobs, counts, np.array(tail))


def projected(
    source: Distributions, index: list[int], vocab_map: VocabMap, k_out: int
) -> tuple[list[list[int]], list[np.ndarray], np.ndarray]:
    """Ids and probabilities position by position, and the tails."""
    found, probs = project(source, np.array(index, np.int64), vocab_map, k_out)
    assert (found.ids.dtype, found.logprobs.dtype, probs.dtype) == (np.int32, np.float16, np.float32)
    assert found.counts.sum() == len(found.ids) == len(probs)
    np.testing.assert_array_equal(found.logprobs, np.log(probs).astype(np.float16))
    borders = np.cumsum(found.counts)[:-1]
    return [part.tolist() for part in np.split(found.ids, borders)], np.split(probs, borders), found.tail


def oracle(ids: np.ndarray, logprobs: np.ndarray, tail: float, goals: list[int], k_out: int) -> list[tuple[int, float]]:
    """One position by a dictionary: scale to 1 - tail, map, sum, sort by probability and id, cut."""
    mass = np.exp(logprobs.astype(np.float64))
    mass *= (1.0 - float(tail)) / mass.sum() if mass.sum() else 0.0
    summed: dict[int, float] = defaultdict(float)
    for source_id, probability in zip(ids.tolist(), mass, strict=True):
        if 0 <= source_id < len(goals) and goals[source_id] >= 0:
            summed[goals[source_id]] += probability
    ranked = sorted((-float(np.float32(p)), target) for target, p in summed.items() if np.float32(p) > 0)
    return [(target, -p) for p, target in ranked[:k_out]]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_equals_the_dictionary_oracle(data: st.DataObject) -> None:
    size, k, rows = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    k_out = data.draw(st.integers(1, 10))
    goals = data.draw(st.lists(st.integers(-1, data.draw(st.sampled_from([3, 40]))), min_size=size, max_size=size))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    top_ids = generator.integers(-1, size + 2, (rows, k)).astype(np.int32)
    mass = -np.sort(-generator.dirichlet(np.ones(k + 1), rows)[:, :k]) * generator.choice([1.0, 0.5, 0.0], (rows, 1))
    mass = np.round(mass, 1) if data.draw(st.booleans()) else mass  # rounded: many ties and zeros
    with np.errstate(divide="ignore"):
        logprobs = np.log(mass).astype(np.float32)
    counts = generator.integers(0, k + 1, rows)
    kept = np.arange(k) < counts[:, None]
    tail = 1 - np.where(kept, mass, 0).sum(axis=1)
    source = Distributions.from_padded(top_ids, logprobs, counts, tail)
    index = generator.integers(-1, rows, data.draw(st.integers(0, 9))).tolist()
    ids, probs, tails = projected(source, index, map_of(goals), k_out)

    for position, row in enumerate(index):
        if row < 0:
            assert (ids[position], tails[position]) == ([], 1.0)
            continue
        given_ids, given = top_ids[row, : counts[row]], logprobs[row, : counts[row]].astype(np.float16)
        wanted = oracle(given_ids, given, source.tail[row], goals, k_out)
        assert ids[position] == [target for target, _ in wanted]
        np.testing.assert_allclose(probs[position], [p for _, p in wanted], rtol=1e-6)
        assert tails[position] == pytest.approx(max(0.0, 1 - sum(p for _, p in wanted)), abs=1e-3)


def test_collisions_are_summed_and_drops_go_to_the_tail() -> None:
    source = source_of([[0, 1, 2, 3]], [[0.4, 0.3, 0.2, 0.05]], [0.05])
    ids, probs, tail = projected(source, [0, -1], map_of([5, 2, 5, -1]), 3)
    assert ids == [[5, 2], []]
    np.testing.assert_allclose(probs[0], [0.6, 0.3], rtol=1e-3)
    np.testing.assert_allclose(tail, [0.1, 1.0], rtol=2e-3)


def test_what_is_cut_off_goes_to_the_tail() -> None:
    ids, _, tail = projected(source_of([[0, 1, 2]], [[0.5, 0.3, 0.2]], [0.0]), [0], map_of([0, 1, 2]), 1)
    assert ids == [[0]]
    assert tail[0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("probability", [0.2502, 0.2498, 0.1])
def test_the_tail_is_the_sources_own_not_what_rounded_entries_leave(probability: float) -> None:
    """The true tail is 2^-10; fp16 log-probabilities sum to something else, here far off in either direction."""
    source = source_of([[0, 1, 2, 3]], [[probability] * 4], [2.0**-10])
    _, probs, tail = projected(source, [0], map_of([0, 1, 2, 3]), 4)
    assert tail[0] == pytest.approx(2.0**-10, abs=1e-6)
    assert probs[0].sum(dtype=np.float64) == pytest.approx(1 - 2.0**-10, abs=1e-7)


def test_ties_are_ordered_by_id() -> None:
    ids, _, _ = projected(source_of([[0, 1, 2]], [[0.25] * 3], [0.25]), [0], map_of([9, 3, 6]), 3)
    assert ids == [[3, 6, 9]]


def test_no_positions() -> None:
    nothing = Distributions.concatenate([])
    found, probs = project(nothing, np.zeros(0, np.int64), map_of([0]), 2)
    assert len(found) == len(probs) == 0
    found, _ = project(nothing, np.array([-1]), map_of([0]), 2)
    assert (found.counts.tolist(), found.tail.tolist()) == ([0], [1.0])
