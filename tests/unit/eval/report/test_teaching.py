"""Who knows less than the target, told from the figures alone."""

from __future__ import annotations

from typing import Any

import pytest

from fusionx.eval.report.teaching import Rank, standing, warnings


def figures(overall: float, **domains: float) -> dict[str, dict[str, float]]:
    return {domain: {"aligned_bits_per_byte": bits} for domain, bits in {"": overall, **domains}.items()}


TARGET = figures(2.0, a=1.0, b=2.0, c=3.0)


@pytest.mark.parametrize(
    ("source", "rank", "worse", "remarks"),
    [
        (figures(1.5, a=0.5, b=1.5, c=2.5), Rank.BETTER_EVERYWHERE, [], []),
        (figures(1.9, a=1.2, b=2.3, c=1.0), Rank.WORSE_SOMEWHERE, ["b", "a"], []),
        (figures(2.1, a=1.5, b=2.8, c=1.0), Rank.KNOWS_LESS, ["b", "a"], ["knows less than the target"]),
        (figures(2.5, a=1.5, b=2.5, c=3.5), Rank.CANNOT_TEACH, ["a", "b", "c"],
         ["knows less than the target", "cannot teach"]),
        (TARGET, Rank.CANNOT_TEACH, [], ["cannot teach"]),
    ],
)  # fmt: skip
def test_a_source_is_ranked_by_where_it_is_better(
    source: Any, rank: Rank, worse: list[str], remarks: list[str]
) -> None:
    found = standing(source, TARGET)
    assert found is not None
    assert (found.rank, found.worse, found.remarks(), found.domains) == (rank, worse, remarks, 3)


def test_domains_that_one_of_them_lacks_are_not_compared() -> None:
    found = standing(figures(1.0, a=0.5, d=9.0), TARGET)
    assert found is not None
    assert (found.better, found.worse, found.domains) == (["a"], [], 1)
    assert standing({}, TARGET) is None
    assert standing(TARGET, {}) is None


def test_a_difference_that_two_digits_would_hide_is_shown() -> None:
    found = standing(figures(2.0012, a=0.9), TARGET)
    assert found is not None
    assert found.bits() == "2.0012 against 2.0000"


def test_every_method_is_judged_by_the_targets_own_figures_through_it() -> None:
    """Aligned by `mined` the target itself loses; a source is compared with what is left of it."""
    lossy = figures(2.6, a=1.6, b=2.6, c=3.6)
    source = figures(2.3, a=1.3, b=2.3, c=3.3)
    assert warnings({"target": "t", "fidelity": {"mined": {"t": lossy, "s": source}}}) == []
    (said,) = warnings({"target": "t", "fidelity": {"walk": {"t": TARGET, "s": source}}})
    assert said == "s is better than the target in no domain: 2.30 against 2.00 bits per byte; it cannot teach."


def test_other_methods_are_told_together_and_only_where_they_are_worse() -> None:
    good, bad = figures(1.5, a=0.5, b=1.5, c=2.5), figures(2.5, a=0.5, b=2.5, c=3.5)
    fidelity = {
        "walk": {"t": TARGET, "s": good, "r": bad},
        "mined": {"t": TARGET, "s": bad, "r": bad},
        "exact": {"t": TARGET, "s": bad, "r": good},
    }
    assert warnings({"target": "t", "fidelity": fidelity}) == [
        "r knows this text worse than the target: 2.50 against 2.00 bits per byte; it can teach little here. It is "
        "worse in 2 of 3 domains: b, c.",
        "Aligned by mined or exact, s is worse than the target: 2.50 against 2.00 (mined), 2.50 against 2.00 (exact) "
        "bits per byte; so it can teach little.",
    ]
    assert warnings({"target": "t", "fidelity": {}}) == []
