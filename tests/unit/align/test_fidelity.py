"""Fidelity and calibration against loops over positions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx.align.fidelity import LENGTHS, Gold, calibration, fidelity, judged_split, ratios, summary
from fusionx.contract.shards.codec import Distributions
from fusionx.contract.shards.next_token import gold_probabilities
from fusionx.contract.shards.parts import Ragged

FIELDS = (
    "gold_positions", "gold_bytes", "gold_nll", "filled_nll", "gold_hits", "blind_positions", "blind_hits",
    "own_bytes", "own_nll",
)  # fmt: skip


def ends_of(rng: np.random.Generator, lengths: np.ndarray) -> Ragged:
    """Of rows of so many tokens, among them such as consume nothing; a BOS begins about half of the rows."""
    rows = [np.cumsum(rng.integers(0, 4, length)) for length in lengths]
    rows = [row - (row[0] if rng.random() < 0.5 else 0) if len(row) else row for row in rows]
    values = np.concatenate([np.zeros(0), *rows]).astype(np.int32)
    return Ragged(values, np.append(0, np.cumsum(lengths)))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000))
def test_equals_a_loop_over_positions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 5))
    lengths = rng.integers(0, 6, rows)
    ends = ends_of(rng, lengths)
    source_ends = ends_of(rng, rng.integers(0, 6, rows))
    input_ids = Ragged(rng.integers(0, 7, len(ends.values)).astype(np.int32), ends.offsets)
    last = ends.offsets[1:][lengths > 0] - 1
    judged = rng.random(len(ends.values)) < 0.8
    judged[last] = False
    of_text, filled = (np.where(judged, rng.random(len(judged)), np.nan) for _ in range(2))
    hit, blind_hit = (rng.random(len(judged)) < 0.5 for _ in range(2))
    token_nll = rng.random(len(source_ends.values)).astype(np.float32)
    token_nll[source_ends.offsets[1:][source_ends.lengths() > 0] - 1] = 0
    domains = [str(domain) for domain in rng.choice(["a", "b"], rows)]

    expected: dict[str, dict[str, float]] = {}
    for row in range(rows):
        sums = expected.setdefault(domains[row], dict.fromkeys(FIELDS, 0.0))
        for at in range(ends.offsets[row], ends.offsets[row + 1] - 1):
            if judged[at]:
                sums["gold_positions"] += 1
                sums["gold_bytes"] += ends.values[at + 1] - ends.values[at]
                sums["gold_nll"] -= math.log(of_text[at])
                sums["filled_nll"] -= math.log(filled[at])
                sums["gold_hits"] += hit[at]
                sums["blind_positions"] += 1
                sums["blind_hits"] += blind_hit[at]
        for at in range(source_ends.offsets[row], source_ends.offsets[row + 1] - 1):
            if lengths[row] and source_ends.values[at] >= ends.row(row)[0]:
                sums["own_bytes"] += source_ends.values[at + 1] - source_ends.values[at]
                sums["own_nll"] += token_nll[at]
    found = fidelity(domains, input_ids, ends, Gold(judged, of_text, filled, hit, blind_hit), source_ends, token_nll)
    assert found.keys() == expected.keys()
    for domain, sums in expected.items():
        assert found[domain] == pytest.approx(sums, rel=1e-6), domain


def test_the_source_is_judged_on_no_text_before_the_targets_first_distribution() -> None:
    """A target without BOS does not predict its first token, "abc"; a source that cut "ab", "c" answers from "d"."""
    ends, source_ends = (Ragged(np.array(row, np.int32), np.array([0, len(row)])) for row in ([3, 5], [0, 2, 3, 5]))
    judged, hits = np.array([True, False]), np.array([True, True])
    gold = Gold(judged, np.array([0.5, np.nan]), np.array([0.25, np.nan]), hits, ~hits)
    nll = np.array([8.0, 4.0, 2.0, 0.0], np.float32)
    found = fidelity(["a"], Ragged(np.array([1, 2], np.int32), ends.offsets), ends, gold, source_ends, nll)
    assert found["a"] == pytest.approx(
        dict(zip(FIELDS, (1, 2, math.log(2), math.log(4), 1, 1, 0, 2, 2), strict=True)),
    )


def test_the_cost_is_the_difference_in_bits_per_byte() -> None:
    sums = {
        "gold_positions": 10.0,
        "gold_bytes": 20.0,
        "gold_nll": 40 * math.log(2),
        "filled_nll": 36 * math.log(2),
        "gold_hits": 4.0,
        "blind_positions": 10.0,
        "blind_hits": 3.0,
        "own_bytes": 50.0,
        "own_nll": 75 * math.log(2),
    }
    found = summary({"a": sums, "b": dict.fromkeys(sums, 0.0)})
    assert found == pytest.approx(
        {
            "own_bits_per_byte": 1.5,
            "aligned_bits_per_byte": 2.0,
            "filled_bits_per_byte": 1.8,
            "cost": 0.5,
            "hits": 0.4,
            "blind_hits": 0.3,
        }
    )
    before = {name: value for name, value in sums.items() if "blind" not in name}
    assert math.isnan(summary({"a": before})["blind_hits"]), "parts made before it was measured"
    assert summary({"a": before, "b": sums})["blind_hits"] == 0.3


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000))
def test_calibration_equals_a_loop_over_entries(seed: int) -> None:
    """Special tokens, of no bytes, are in no length; long tokens share one; ids of a padded head have no length."""
    rng = np.random.default_rng(seed)
    size, vocab = int(rng.integers(0, 9)), 40
    lengths = rng.integers(0, LENGTHS + 4, vocab).astype(np.int32)
    counts = rng.integers(0, 5, size)
    ids = rng.integers(0, vocab + 3, int(counts.sum())).astype(np.int32)
    probs = rng.random(len(ids)).astype(np.float32)
    said = Distributions(ids, np.log(probs).astype(np.float16), counts.astype(np.uint16), np.zeros(size, np.float16))
    labels, judged = rng.integers(0, vocab, size), rng.random(size) < 0.7

    expected = {str(length): {"given": 0.0, "found": 0.0} for length in range(1, LENGTHS + 1)}
    starts = np.append(0, np.cumsum(counts))
    for at in np.flatnonzero(judged).tolist():
        row = slice(starts[at], starts[at + 1])
        for token, probability in zip(ids[row].tolist(), probs[row].tolist(), strict=True):
            if token < vocab and lengths[token]:
                expected[str(min(lengths[token], LENGTHS))]["given"] += probability
        if lengths[labels[at]]:
            expected[str(min(lengths[labels[at]], LENGTHS))]["found"] += 1
    found = calibration(said, probs, judged, labels, lengths)
    assert list(found) == list(expected)
    for length, sums in expected.items():
        assert found[length] == pytest.approx(sums, rel=1e-6), length
        share = ratios(found)[int(length) - 1]
        assert share == (pytest.approx(sums["given"] / sums["found"]) if sums["found"] else None)


def test_alignment_is_judged_on_validation_or_else_on_what_comes_first() -> None:
    assert judged_split(["train", "validation", "test"]) == "validation"
    assert judged_split(["train", "test"]) == "train"


def test_a_label_outside_entries_that_leave_no_tail_costs_much_but_not_infinitely() -> None:
    """fp16 rounds the smallest tails to 0, and the floor below them must not do the same."""
    said = Distributions.from_padded(np.array([[1]]), np.array([[0.0]]), np.array([1]), np.array([0.0]))
    gold, hit = gold_probabilities(said, np.ones(1, np.float32), np.array([2]), vocab_size=32_000)
    assert gold.tolist() == pytest.approx([2**-24 / 32_000])
    assert not hit.any()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000))
def test_the_probability_of_a_label_equals_a_loop_over_entries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocab, k, size = 7, 4, int(rng.integers(1, 9))
    counts = rng.integers(0, k + 1, size)
    ids = np.stack([rng.permutation(vocab)[:k] for _ in range(size)])
    mass = -np.sort(-rng.dirichlet(np.ones(k + 1), size)[:, :k])
    kept = np.arange(k) < counts[:, None]
    said = Distributions.from_padded(ids, np.log(mass), counts, 1 - np.where(kept, mass, 0).sum(axis=1))
    labels = rng.integers(0, vocab, size)
    gold, hit = gold_probabilities(said, mass[kept].astype(np.float32), labels, vocab)
    for at in range(size):
        entries = ids[at, : counts[at]].tolist()
        share = max(float(said.tail[at]) / max(vocab - counts[at], 1), 2.0**-24 / vocab)
        expected = mass[at, entries.index(labels[at])] if labels[at] in entries else share
        assert gold[at] == pytest.approx(expected, rel=1e-6)
        assert hit[at] == (entries[:1] == [labels[at]])
