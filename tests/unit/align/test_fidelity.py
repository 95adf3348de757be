"""Fidelity against a loop over positions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx.align.fidelity import fidelity, summary
from fusionx.contract.shards.codec import Distributions
from fusionx.contract.shards.next_token import gold_probabilities
from fusionx.contract.shards.parts import Ragged


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000))
def test_equals_a_loop_over_positions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocab, k, rows = 7, 4, int(rng.integers(1, 5))
    lengths = rng.integers(0, 6, rows)
    offsets = np.append(0, np.cumsum(lengths))
    size = int(offsets[-1])
    input_ids = Ragged(rng.integers(0, vocab, size).astype(np.int32), offsets)
    ends = Ragged(
        np.concatenate([np.zeros(0), *(np.cumsum(rng.integers(0, 4, n)) for n in lengths)]).astype(int), offsets
    )
    aligned = rng.random(size) < 0.8
    counts = np.where(aligned, rng.integers(0, k + 1, size), 0)
    ids = np.stack([rng.permutation(vocab)[:k] for _ in range(size)]) if size else np.zeros((0, k), int)
    mass = -np.sort(-rng.dirichlet(np.ones(k + 1), size)[:, :k])
    kept = np.arange(k) < counts[:, None]
    tail = 1 - np.where(kept, mass, 0).sum(axis=1)
    projected = Distributions.from_padded(ids, np.log(mass), counts, tail)
    domains = [str(domain) for domain in rng.choice(["a", "b"], rows)]
    own_nll, own_bytes = rng.random(rows) * 9, rng.integers(0, 20, rows)

    expected: dict[str, dict[str, float]] = {}
    for row in range(rows):
        sums = expected.setdefault(domains[row], dict.fromkeys(FIELDS, 0.0))
        sums["own_nll"] += own_nll[row]
        sums["own_bytes"] += own_bytes[row]
        for at in range(offsets[row], offsets[row + 1] - 1):
            if not aligned[at]:
                continue
            label, entries = input_ids.values[at + 1], ids[at, : counts[at]].tolist()
            tail_share = float(projected.tail[at]) / max(vocab - counts[at], 1)
            gold = float(np.float32(mass[at, entries.index(label)])) if label in entries else tail_share
            sums["gold_positions"] += 1
            sums["gold_bytes"] += ends.values[at + 1] - ends.values[at]
            sums["gold_nll"] -= math.log(max(gold, 2.0**-24 / vocab))
            sums["gold_hits"] += bool(entries) and entries[0] == label
    found = fidelity(
        domains, input_ids, ends, aligned, projected, mass[kept].astype(np.float32), vocab, own_nll, own_bytes
    )
    assert found.keys() == expected.keys()
    for domain, sums in expected.items():
        assert found[domain] == pytest.approx(sums, rel=1e-6), domain


FIELDS = ("gold_positions", "gold_bytes", "gold_nll", "gold_hits", "own_bytes", "own_nll")


def test_the_cost_is_the_difference_in_bits_per_byte() -> None:
    sums = {
        "gold_positions": 10.0,
        "gold_bytes": 20.0,
        "gold_nll": 40 * math.log(2),
        "gold_hits": 4.0,
        "own_bytes": 50.0,
        "own_nll": 75 * math.log(2),
    }
    found = summary({"a": sums, "b": dict.fromkeys(sums, 0.0)})
    expected = {"own_bits_per_byte": 1.5, "aligned_bits_per_byte": 2.0, "cost": 0.5, "hits": 0.4}
    assert found == pytest.approx(expected)


def test_a_label_outside_entries_that_leave_no_tail_costs_much_but_not_infinitely() -> None:
    """fp16 rounds the smallest tails to 0, and the floor below them must not do the same."""
    said = Distributions.from_padded(np.array([[1]]), np.array([[0.0]]), np.array([1]), np.array([0.0]))
    gold, hit = gold_probabilities(said, np.ones(1, np.float32), np.array([2]), vocab_size=32_000)
    assert gold.tolist() == pytest.approx([2**-24 / 32_000])
    assert not hit.any()
