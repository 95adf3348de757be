"""Shapes of batches: few where shapes cost, as they come where padding does, and the cheapest cut of the rows."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx.contract.shapes import EXACT, FEW, Batch, Shapes, batches_by_length, shapes_of

BUDGET = 16384


def web_text(rng: np.random.Generator, rows: int = 350) -> list[int]:
    """Tokens of each chunk of a megabyte of text: log-normal lengths with a median of 350, cut at 2048."""
    return rng.lognormal(np.log(350), 1.3, rows).clip(1, 2048).astype(int).tolist()


def cost(batches: list[tuple[int, int]]) -> int:
    return sum(rows * length + 256 for rows, length in batches)


def cheapest(lengths: list[int], budget: int, shapes: Shapes) -> int:
    """The rule, spelled out: every way to cut the rows in order of length."""
    rows = sorted(filter(None, lengths), reverse=True)
    found = []
    for cuts in range(len(rows)):
        for places in combinations(range(1, len(rows)), cuts):
            parts = [rows[a:b] for a, b in zip((0, *places), (*places, len(rows)), strict=True)]
            made = [(shapes.rows(len(part)), shapes.length(part[0])) for part in parts]
            if all(len(p) == 1 or r * t <= budget for p, (r, t) in zip(parts, made, strict=True)):
                found.append(cost(made))
    return min(found, default=0)


@given(st.lists(st.integers(0, 300), max_size=9), st.sampled_from([1, 100, 700, 4000]), st.sampled_from([EXACT, FEW]))
@settings(max_examples=60, deadline=None)
def test_batches_are_the_cheapest_of_all_cuts(lengths: list[int], budget: int, shapes: Shapes) -> None:
    batches = batches_by_length(lengths, budget, shapes)
    assert sorted(row for batch in batches for row in batch.rows) == [row for row, n in enumerate(lengths) if n]
    for batch in batches:
        assert len(batch.rows) <= batch.size
        assert len(batch.rows) == 1 or batch.size * batch.length <= budget
        assert batch.length >= max(lengths[row] for row in batch.rows)
    assert cost([(batch.size, batch.length) for batch in batches]) == cheapest(lengths, budget, shapes)


@given(st.integers(1, 100_000), st.integers(1, 1000))
def test_padding_is_bounded_and_keeps_the_order(tokens: int, rows: int) -> None:
    padded = FEW.length(tokens)
    assert tokens <= padded <= max(64, 1.25 * tokens)
    assert FEW.length(padded) == padded, "a padded length is one of the few"
    assert FEW.length(tokens + 1) >= padded
    assert rows <= FEW.rows(rows) < 2 * rows
    assert (EXACT.length(tokens), EXACT.rows(rows)) == (tokens, rows)


def test_no_batch_is_padded_beyond_what_the_model_takes() -> None:
    assert FEW.length(1990) == 2048
    assert FEW.length(1990, most=2000) == 2000
    assert FEW.length(30, most=48) == 48
    assert batches_by_length([1990, 1990], 10**6, FEW, most=2000) == [Batch([0, 1], 2, 2000)]


@pytest.mark.parametrize(("shapes", "padding", "most_shapes"), [(EXACT, 0.03, None), (FEW, 0.075, 100)])
def test_web_text_meets_few_shapes_and_little_padding(shapes: Shapes, padding: float, most_shapes: int | None) -> None:
    rng = np.random.default_rng(0)
    parts = [web_text(rng) for _ in range(12)]
    batches = [batch for part in parts for batch in batches_by_length(part, BUDGET, shapes)]
    padded = sum(batch.size * batch.length for batch in batches)
    assert 1 - sum(map(sum, parts)) / padded < padding
    assert len(batches) < 12 * 50
    if most_shapes is not None:
        assert len({(batch.size, batch.length) for batch in batches}) < most_shapes
        assert {batch.length for batch in batches} <= {FEW.length(tokens) for tokens in range(1, 2049)}
        assert len({FEW.length(tokens) for tokens in range(1, 2049)}) == 21


def test_a_cpu_pays_for_padding_and_nothing_for_shapes() -> None:
    assert shapes_of("cpu") is EXACT
    assert shapes_of("cuda") is FEW
