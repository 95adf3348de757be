"""Scores of tasks and groups with their intervals, against what defines them."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.statistics import interval_of_mean, wilson_interval
from fusionx.eval.results.task_scores import ALL, task_scores


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilsons_limits_are_the_shares_from_which_the_found_one_is_just_likely(
    count: int, share: float, confidence: float
) -> None:
    low, high = wilson_interval(share, count, confidence)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    for limit in (low, high):
        if 1e-9 < limit < 1 - 1e-9:
            assert abs(share - limit) == pytest.approx(z * math.sqrt(limit * (1 - limit) / count), rel=1e-6, abs=1e-9)


def test_wilson_has_its_published_values() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(right / count, count, 0.95) == pytest.approx([low, high], abs=5e-5)


def test_an_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(0)
    true = np.array([0.1, 0.5, 0.9, 0.95])
    covered = 0
    for _ in range(1000):
        shares = drawn.binomial(12, true) / 12
        low, high = interval_of_mean(list(shares), [wilson_interval(share, 12, 0.95) for share in shares])
        covered += low <= true.mean() <= high
    assert 0.92 < covered / 1000 < 0.985
    assert interval_of_mean([0.3], [[0.1, 0.6]]) == pytest.approx([0.1, 0.6])


def evaluation(items: dict[str, list[float]], **figures: dict[str, Any]) -> Evaluation:
    tasks = {
        name: {"n": len(of), "score": sum(of) / len(of), "stderr": 0.1, **figures.get(name, {})}
        for name, of in items.items()
    }
    tasks |= {name: found for name, found in figures.items() if name not in items}
    return Evaluation("m", "w", "c", "d", {}, {}, {}, tasks, items)  # type: ignore[arg-type]


def test_every_model_has_every_task_and_group() -> None:
    perplexity = {"benchmark": "text", "metric": "word_perplexity", "n": 5, "stderr": None, "higher_is_better": False}
    of_group = {"benchmark": "mine", "metric": "acc"}
    first, second = (
        evaluation(
            {"a": a, "b": [1, 1, 0, 0], "own": [0, 0]}, a=of_group, b=of_group, text={**perplexity, "score": score}
        )
        for a, score in (([1, 1, 1, 1], 20.0), ([1, 1, 0, 0], 30.0))
    )
    found = task_scores({"target": [first]}, {"ct": {"best": [first, second], "last": [second, second]}})
    assert found["groups"] == {"mine": ["a", "b"], ALL: ["a", "b", "own"]}
    assert found["tasks"]["text"] == {
        "benchmark": "text",
        "metric": "word_perplexity",
        "n": 5,
        "share": False,
        "higher_is_better": False,
    }
    at_best = found["methods"]["ct"]["best"]
    assert (at_best["tasks"]["a"]["score"], at_best["tasks"]["text"]["score"]) == (0.75, 25.0)
    assert at_best["tasks"]["a"]["interval"] == wilson_interval(0.75, 4, 0.95)
    assert at_best["tasks"]["text"]["interval"] is None
    assert at_best["groups"]["mine"]["score"] == (0.75 + 0.5) / 2
    assert found["models"]["target"]["groups"][ALL]["score"] == pytest.approx(first.skill_accuracy)
