"""Interference and its statistics against brute force and published values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionx.contract.errors import DataError
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.interference import compare
from fusionx.eval.results.statistics import (
    holm,
    mcnemar_p_value,
    paired_bootstrap,
    paired_bootstrap_of_means,
    t_interval,
    t_probability,
    t_quantile,
)


def evaluation(documents: dict[str, list[list[float]]], items: Mapping[str, list[float]], **digests: str) -> Evaluation:
    domains = {}
    for name, sums in documents.items():
        nll, count = sum(row[0] for row in sums), sum(row[1] for row in sums)
        domains[name] = {"bits_per_byte": nll / count / math.log(2), "perplexity": 2.0}
    fields: dict[str, Any] = {
        "model": "m",
        "weights_digest": "w",
        "config_digest": "c",
        "data_digest": "d",
        "domains": domains,
        "overall": {},
        "documents": documents,
        "items": dict(items),
        "tasks": {name: {"n": len(flags), "score": sum(flags) / len(flags)} for name, flags in items.items()},
    }
    return Evaluation(**{**fields, **digests})


def scaled(documents: list[list[float]], factor: float) -> list[list[float]]:
    return [[nll * factor, count] for nll, count in documents]


@pytest.fixture
def documents() -> list[list[float]]:
    generator = np.random.default_rng(0)
    return [[float(generator.uniform(200, 300)), float(generator.integers(250, 350))] for _ in range(30)]


def test_clear_losses_and_gains(documents: list[list[float]]) -> None:
    noisy = [[nll * (1.02 if position % 2 else 0.985), n] for position, (nll, n) in enumerate(documents)]
    baseline = evaluation(
        {"better": documents, "noise": documents, "worse": documents}, {"lost": [1] * 20, "same": [1, 0] * 10}
    )
    model = evaluation(
        {"better": scaled(documents, 0.9), "noise": noisy, "worse": scaled(documents, 1.1)},
        {"lost": [0] * 15 + [1] * 5, "same": [1, 0] * 10},
    )
    result = compare(baseline, model, resamples=500)
    judged = {unit.name: (unit.degraded, unit.degraded_beyond_noise) for unit in result.units}
    assert judged == {
        "better": (False, False), "noise": (True, False), "worse": (True, True), "lost": (True, True),
        "same": (False, False),
    }  # fmt: skip
    by_name = {unit.name: unit for unit in result.units}
    assert by_name["worse"].loss == pytest.approx(0.1)
    assert by_name["lost"].loss == pytest.approx(0.75)
    low, high = by_name["worse"].interval or [0, 0]
    assert low <= by_name["worse"].difference <= high
    summary = result.summary()
    assert (summary["units"], summary["degraded"], summary["degraded_beyond_noise"]) == (5, 3, 2)
    assert summary["worst_loss"] == pytest.approx(0.75)
    assert summary["mean_loss"] == pytest.approx(sum(unit.loss for unit in result.units) / 5)
    assert compare(baseline, model, resamples=500) == result


def test_few_documents_are_never_beyond_noise(documents: list[list[float]]) -> None:
    result = compare(
        evaluation({"d": documents[:4]}, {}), evaluation({"d": scaled(documents[:4], 2.0)}, {}), resamples=200
    )
    assert (result.units[0].degraded, result.units[0].degraded_beyond_noise) == (True, False)
    assert result.units[0].interval is None


@pytest.mark.parametrize("digest", ["data_digest", "config_digest"])
def test_evaluations_of_other_data_are_refused(digest: str, documents: list[list[float]]) -> None:
    with pytest.raises(DataError, match="cannot be compared"):
        compare(evaluation({"d": documents}, {}), evaluation({"d": documents}, {}, **{digest: "other"}))


def test_evaluations_in_another_precision_are_refused(documents: list[list[float]]) -> None:
    half, full = (
        replace(evaluation({"d": documents}, {}), versions={"dtype": name}) for name in ("bfloat16", "float32")
    )
    with pytest.raises(DataError, match="different precisions"):
        compare(half, full)
    assert not compare(full, full, resamples=100).units[0].degraded


def test_bootstrap_equals_enumeration_of_all_draws() -> None:
    before, after = np.array([[10.0, 10], [30.0, 20], [5.0, 9]]), np.array([[12.0, 10], [29.0, 20], [4.0, 9]])
    exact = []
    for draw in itertools.product(range(3), repeat=3):
        rows = list(draw)
        exact.append((after[rows, 0].sum() - before[rows, 0].sum()) / before[rows, 1].sum() / math.log(2))
    found = paired_bootstrap(before, after, 40_000, seed=1)
    assert set(np.round(found, 9)) == set(np.round(exact, 9))
    assert found.mean() == pytest.approx(np.mean(exact), abs=3e-3)
    assert (found <= 0).mean() == pytest.approx((np.array(exact) <= 0).mean(), abs=0.02)


def test_bootstrap_of_means_equals_enumeration_of_all_draws() -> None:
    before, after = [0.1, 0.9, 0.5], [0.3, 0.2, 0.5]
    differences = np.array(after) - np.array(before)
    exact = [differences[list(draw)].mean() for draw in itertools.product(range(3), repeat=3)]
    found = paired_bootstrap_of_means(before, after, 40_000, seed=1)
    assert set(np.round(found, 9)) == set(np.round(exact, 9))
    assert found.mean() == pytest.approx(np.mean(exact), abs=3e-3)
    assert (found >= 0).mean() == pytest.approx((np.array(exact) >= 0).mean(), abs=0.02)


def test_items_that_are_shares_are_judged_by_the_bootstrap() -> None:
    generator = np.random.default_rng(0)
    before = generator.binomial(20, 0.6, 40) / 20
    items = {
        "lost": before * 0.8,
        "gained": 0.2 + before * 0.8,
        "same": before,
        "noise": before[::-1],
        "few": before[:4],
    }
    baseline = evaluation({}, {name: before[: len(after)].tolist() for name, after in items.items()})
    model = evaluation({}, {name: (after * (0.5 if name == "few" else 1)).tolist() for name, after in items.items()})
    units = {unit.name: unit for unit in compare(baseline, model, resamples=500).units}
    assert {name for name, unit in units.items() if unit.degraded_beyond_noise} == {"lost"}
    assert units["lost"].p_value == pytest.approx(1 / 501)
    assert units["gained"].p_value == units["same"].p_value == 1.0
    assert 0.1 < units["noise"].p_value < 0.9
    low, high = units["lost"].interval or [0, 0]
    assert low < units["lost"].difference < high < 0
    # Too few items to speak of noise, however clear the loss.
    assert (units["few"].degraded, units["few"].p_value, units["few"].interval) == (True, 1.0, None)


def test_shares_that_happen_to_be_whole_are_judged_by_the_exact_test() -> None:
    baseline, model = (evaluation({}, {"a": flags}) for flags in ([1.0] * 6, [0.0] * 6))
    assert compare(baseline, model).units[0].p_value == pytest.approx(2**-6)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=10))
def test_mcnemar_equals_enumeration_of_all_sign_flips(pairs: list[tuple[bool, bool]]) -> None:
    before, after = [int(a) for a, _ in pairs], [int(b) for _, b in pairs]
    changed = [a - b for a, b in zip(before, after, strict=True) if a != b]
    flips = list(itertools.product((-1, 1), repeat=len(changed)))
    expected = sum(sum(flip) >= sum(changed) for flip in flips) / len(flips)
    assert mcnemar_p_value(before, after) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_holm_equals_the_step_down_rule(p_values: list[float], alpha: float) -> None:
    rejected: set[int] = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        # Written as the product, as the code has it: dividing alpha instead can round to the other side of equality.
        if (len(p_values) - rank) * p_values[index] > alpha:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_t_distribution_has_its_published_values() -> None:
    for degrees, value in ((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)):
        assert t_quantile(0.975, degrees) == pytest.approx(value, abs=6e-4)
    assert t_probability(0.0, 7) == 0.5
    assert t_interval([1.0], 0.95) is None
    low, high = t_interval([1.0, 2.0, 3.0], 0.95) or [0, 0]
    assert (low, high) == (
        pytest.approx(2 - 4.3027 / math.sqrt(3), 1e-4),
        pytest.approx(2 + 4.3027 / math.sqrt(3), 1e-4),
    )
