"""Fixed share against its own recursion, one chunk after the other, and against the bound that it promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionx.contract.shards.fixed_share import fixed_share_weights


def one_after_the_other(label_probs: Any, alpha: float, eta: float) -> list[list[float]]:
    """Of one chunk; the definition."""
    m = label_probs.shape[1]
    w, weights = [1 / m] * m, []
    for said in label_probs.tolist():
        weights.append(w)
        known = [p for p in said if not math.isnan(p)]
        instead = sum(known) / len(known) if known else 1.0
        w = [a * max(instead if math.isnan(p) else p, 1e-6) ** eta for a, p in zip(w, said, strict=True)]
        w = [(1 - alpha) * a / sum(w) + alpha / m for a in w]
    return weights


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    candidates=st.integers(1, 6),
    alpha=st.sampled_from([0.001, 0.02, 0.5, 1.0]),
    eta=st.sampled_from([0.25, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_all_chunks_at_once_are_one_after_the_other(
    lengths: list[int], candidates: int, alpha: float, eta: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])
    probs = 10.0 ** generator.uniform(-8, 0, (offsets[-1], candidates))
    probs[generator.random(probs.shape) < 0.1] = np.nan
    found = fixed_share_weights(probs, offsets, alpha, eta)
    expected = [row for part in np.split(probs, offsets[1:-1]) for row in one_after_the_other(part, alpha, eta)]
    assert found == pytest.approx(np.array(expected).reshape(found.shape))


def test_the_mixture_is_nearly_as_good_as_the_best_sequence_of_candidates() -> None:
    generator = np.random.default_rng(7)
    m, stretches, length = 4, 5, 80
    good = (np.arange(stretches) % m).repeat(length)
    everywhere = np.arange(stretches * length)
    probs = generator.uniform(0.01, 0.2, (stretches * length, m))
    probs[everywhere, good] = generator.uniform(0.4, 0.9, stretches * length)
    best = -np.log(probs[everywhere, good]).sum()
    share = (stretches - 1) / len(probs)
    # What is dealt out anew goes to all M, the one that had it among them.
    w = fixed_share_weights(probs, np.array([0, len(probs)]), share / (1 - 1 / m), 1.0)
    loss = -np.log((w * probs).sum(-1)).sum()
    coin = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert best < loss <= best + stretches * math.log(m) + len(probs) * coin
    assert loss < -np.log(probs.mean(-1)).sum()


def test_the_weights_of_a_position_know_nothing_of_it_or_of_what_follows() -> None:
    generator = np.random.default_rng(3)
    probs, offsets = generator.random((30, 3)), np.array([0, 30])
    changed = np.concatenate([probs[:12], generator.random((18, 3))])
    before, after = fixed_share_weights(probs, offsets), fixed_share_weights(changed, offsets)
    assert (before[:13] == after[:13]).all()
    assert not np.allclose(before[13:], after[13:])
