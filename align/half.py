"""Probabilities as fp16 log-probabilities and back, many at a time."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from fusionx.contract.jit import compiled

_BLOCK = 1 << 16
"""Values at a time: they stay in the processor's cache between their logarithm and its rounding."""


@cache
def probability_of_bits() -> npt.NDArray[np.float32]:
    """e^x for every fp16 bit pattern x, float32 [65536]; 0 for what is no log-probability."""
    lawful = np.array([0, *range(0x8000, 0xFC01)], np.uint16)  # 0, and from -0 down to -inf
    table = np.zeros(1 << 16, np.float32)
    table[lawful] = np.exp(lawful.view(np.float16).astype(np.float64))
    return table


def half_logs(probs: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Natural logarithms of positive float32 values, rounded to fp16."""
    bits = np.empty(len(probs), np.uint16)
    logs = np.empty(min(_BLOCK, len(probs)), np.float32)
    for start in range(0, len(probs), _BLOCK):
        block = probs[start : start + _BLOCK]
        np.log(block, out=logs[: len(block)])
        _round_to_half(logs[: len(block)], bits[start:])
    return bits.view(np.float16)


@compiled
def _round_to_half(values, out):  # type: ignore[no-untyped-def]
    """fp16 bits of float32 values below 65504 in size, to nearest, ties to even; numpy converts one value at a time."""
    bits = values.view(np.uint32)
    for at in range(len(values)):
        size = np.int32(bits[at] & np.uint32(0x7FFFFFFF))
        if size >= 0x38800000:  # 2^-14, fp16's smallest normal value: a smaller exponent, ten bits of the fraction
            half = (size + 0xFFF + ((size >> 13) & 1) - (112 << 23)) >> 13
        else:
            half = np.int32(np.rint(np.abs(values[at]) * np.float32(1 << 24)))
        out[at] = np.uint16(half | ((bits[at] >> np.uint32(16)) & np.uint32(0x8000)))
