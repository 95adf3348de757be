"""Probabilities as fp16 log-probabilities, against numpy's own conversion."""

import numpy as np
import pytest

import fusionx.align.half as module
from fusionx.align.half import _round_to_half, half_logs, probability_of_bits


def test_rounding_to_half_is_numpys_own() -> None:
    """Over every fp16 value from 0 down to the lowest: itself, half way to the next, and just beside that."""
    lowest = 0xFBFF
    half = np.arange(0x8000, lowest + 1, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (half[1:] + half[:-1]) / 2
    beside = [np.nextafter(between, np.float32(limit)) for limit in (-np.inf, np.inf)]
    values = np.concatenate([[np.float32(0)], half, between, *beside])
    out = np.empty(len(values), np.uint16)
    _round_to_half(values, out)
    np.testing.assert_array_equal(out, values.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100])
def test_logarithms_are_the_same_block_by_block(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 16)
    probs = (np.random.default_rng(size).random(size) ** 20 + 1e-30).astype(np.float32)
    np.testing.assert_array_equal(half_logs(probs), np.log(probs).astype(np.float16))


def test_every_bit_pattern_has_its_probability_and_what_is_no_log_probability_has_none() -> None:
    with np.errstate(all="raise", under="ignore"):  # a warning would look like bad data
        found = probability_of_bits.__wrapped__()
    logs = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    lawful = logs <= 0
    assert found[lawful] == pytest.approx(np.exp(logs[lawful]), rel=1e-6)
    assert not found[~lawful].any(), "positive values, infinity and NaN"
    assert found[np.float16("-inf").view(np.uint16)] == 0
