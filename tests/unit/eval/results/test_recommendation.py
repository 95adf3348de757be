"""The recommended model: chosen on bits per byte alone, with the target's say, and intervals that an oracle gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionx.eval.results.recommendation import Contender, recommend
from fusionx.eval.results.statistics import paired_bootstrap_of_domains

DOMAINS = ["code", "prose"]


def documents(scale: float, seed: int = 0, count: int = 8) -> dict[str, list[list[float]]]:
    """About `scale` bits per byte; all models share the same difficulty of the documents."""
    generator = np.random.default_rng(7)
    own = np.random.default_rng(seed)
    made = {}
    for domain in [*DOMAINS, "absent"]:
        sizes, hard = generator.integers(50, 200, count), generator.uniform(0.8, 1.2, count)
        noise = own.normal(1, 0.01, count)
        made[domain] = np.stack([sizes * hard * noise * scale * math.log(2), sizes], axis=1).tolist()
    return made


def bits(of: dict[str, list[list[float]]], domains: list[str]) -> float:
    per_domain = [sum(n for n, _ in of[d]) / sum(b for _, b in of[d]) / math.log(2) for d in domains]
    return sum(per_domain) / len(per_domain)


TARGET = Contender("target", "small", documents(1.2, 1))
CT = [Contender("method", "ct", documents(1.1, 2), 0), Contender("method", "ct", documents(1.05, 3), 1)]
FUSED = [Contender("method", "fusionx", documents(1.0, 4), 0), Contender("method", "fusionx", documents(1.08, 5), 1)]
WORSE, BETTER = Contender("source", "worse", documents(1.3, 6)), Contender("source", "better", documents(0.9, 7))


def test_the_method_is_chosen_by_its_mean_and_its_best_seed_stands_for_it() -> None:
    found = recommend([TARGET, *CT, *FUSED, WORSE], DOMAINS, resamples=200)
    assert (found["kind"], found["name"], found["seed"]) == ("method", "fusionx", 0)
    assert found["bits_per_byte"] == pytest.approx(bits(dict(FUSED[0].documents), DOMAINS))
    change = found["bits_per_byte"] / found["all"]["target"] - 1
    assert found["vs_target"]["mean"] == pytest.approx(change)
    low, high = found["vs_target"]["interval"]
    assert low < change < high < 0
    assert found["best_source"]["name"] == "worse"
    assert found["best_source"]["vs_model"]["interval"][0] > 0
    assert found["runner_up"]["name"] == "ct"
    assert set(found["all"]["methods"]["ct"]["per_seed"]) == {"0", "1"}


def test_the_unchanged_target_wins_where_nothing_helped_and_where_all_are_equal() -> None:
    hurt = Contender("method", "ct", documents(1.4, 2), 0)
    found = recommend([hurt, TARGET, WORSE, BETTER], DOMAINS, resamples=100)
    assert (found["kind"], found["name"], found["vs_target"]) == ("target", "small", None)
    assert found["best_source"]["name"] == "better"
    assert found["best_source"]["vs_model"]["interval"][1] < 0
    equal = Contender("method", "ct", TARGET.documents, 0)
    assert recommend([TARGET, equal], DOMAINS, resamples=100)["kind"] == "target"


def test_only_the_domains_that_count_have_a_say() -> None:
    broken = dict(FUSED[0].documents) | {"absent": [[1e6, 1.0]] * 8}
    found = recommend([TARGET, Contender("method", "fusionx", broken, 0)], DOMAINS, resamples=100)
    assert (found["kind"], found["best_source"]) == ("method", None)


def test_too_few_documents_give_no_interval() -> None:
    few = [
        Contender(of.kind, of.name, {d: rows[:1] for d, rows in of.documents.items()}, of.seed)
        for of in (TARGET, *FUSED)
    ]
    assert recommend(few, DOMAINS)["vs_target"]["interval"] is None


def test_the_interval_is_as_wide_as_the_documents_differ() -> None:
    """Its spread over resamples is the standard error that the differences of documents of one size have."""
    generator = np.random.default_rng(0)
    before = [np.stack([np.full(3, 100.0), np.full(3, 100.0)], axis=1) for _ in range(40)]
    after = [np.stack([100.0 + generator.normal(0, 5, 3), np.full(3, 100.0)], axis=1) for _ in range(40)]
    drawn = paired_bootstrap_of_domains(before, after, 4000, list(range(40)))
    variances = [np.var(rows[:, 0] / 100, ddof=1) / 3 for rows in after]
    assert drawn.std() == pytest.approx(math.sqrt(sum(variances)) / 40, rel=0.05)


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 9), st.integers(1, 300))
def test_resampled_differences_equal_a_sum_over_the_drawn_documents(
    seed: int, domains: int, count: int, resamples: int
) -> None:
    generator = np.random.default_rng(seed)
    before, after = (
        [np.stack([generator.uniform(1, 9, count), generator.integers(1, 99, count)], axis=1) for _ in range(domains)]
        for _ in range(2)
    )
    found = paired_bootstrap_of_domains(before, after, resamples, list(range(domains)))
    draws = [np.random.default_rng(number) for number in range(domains)]
    for resample in range(resamples):
        means = [0.0, 0.0]
        for domain, draw in enumerate(draws):
            chosen = np.repeat(np.arange(count), draw.multinomial(count - 1, [1 / count] * count))
            for which, side in enumerate((before, after)):
                rows = [side[domain][row] for row in chosen]
                means[which] += sum(r[0] for r in rows) / sum(r[1] for r in rows) / math.log(2) / domains
        assert found[resample] == pytest.approx(means[1] / means[0] - 1, abs=1e-9)
