"""Figures of the alignment from the sums that aligned manifests hold."""

from __future__ import annotations

import math

import pytest

from fusionx.pipelines.evaluation.aligned_figures import fidelity_figures

NAMES = ("gold_positions", "gold_bytes", "gold_nll", "filled_nll", "gold_hits", "own_bytes", "own_nll")
BLIND = ("blind_positions", "blind_hits")


def sums(*values: float) -> dict[str, float]:
    return dict(zip(NAMES, values, strict=True)) | dict(zip(BLIND, (values[0], values[4] / 2), strict=True))


def test_domains_and_all_together_in_bits_per_byte() -> None:
    bit = math.log(2)
    found = fidelity_figures(
        {
            "a": sums(4, 10, 20 * bit, 18 * bit, 1, 10, 15 * bit),
            "b": sums(4, 30, 30 * bit, 30 * bit, 3, 20, 15 * bit),
        }
    )
    assert found["a"] == pytest.approx(
        {
            "own_bits_per_byte": 1.5,
            "aligned_bits_per_byte": 2,
            "filled_bits_per_byte": 1.8,
            "cost": 0.5,
            "hits": 0.25,
            "blind_hits": 0.125,
        }
    )
    assert found[""]["aligned_bits_per_byte"] == pytest.approx(50 / 40)
    assert found[""]["own_bits_per_byte"] == pytest.approx(1)
    assert (found[""]["hits"], found[""]["blind_hits"]) == pytest.approx((0.5, 0.25))


def test_a_domain_of_which_nothing_is_judged_is_no_perfect_one() -> None:
    judged, nothing = sums(4, 10, 20, 18, 1, 10, 15), sums(0, 0, 0, 0, 0, 12, 30)
    assert fidelity_figures({"a": judged, "b": nothing}) == fidelity_figures({"a": judged})
    assert fidelity_figures({"b": nothing}) == {}
    assert fidelity_figures({}) == {}
