"""The top-k statistics of logits on a CPU: every row is read twice, and nothing of its size is written.

The two loops that run over all of a row, `_above` and `_sum_of_exp`, are written so that a compiler makes vector
instructions of them: no branches, and no value of another width than 32 bits.
"""

from __future__ import annotations

import numpy as np

from fusionx.contract.jit import fused, inlined, uncounted

_GROUP, _SUMS = 64, 256
_F, _I = np.float32, np.int32
_LEAST = _F(-87.0)
"""exp of less is no normal float32."""
_MINUS_INFINITY = -(1 << 23)
"""The bits of this float32, as an integer."""


def new_sums() -> np.ndarray:
    """What a thread needs beside its arguments, float32 [256]."""
    return np.empty(_SUMS, np.float32)


@uncounted
def statistics(
    logits: np.ndarray,
    shift: int,
    labels: np.ndarray,
    vocab_size: int,
    sums: np.ndarray,
    ids: np.ndarray,
    logprobs: np.ndarray,
    label_nll: np.ndarray,
    tail: np.ndarray,
) -> None:
    """Writes the statistics of N rows, as `TopK` has them, into its last four arguments.

    Args:
        logits: the bits of bfloat16 (int16) or float32 (int32) [N, V], of which those of `ids` are lost.
        shift: by which they become the bits of a float32: 16 or 0.
        labels, vocab_size: as of `top_k_statistics`. sums: of `new_sums`.
    """
    for row in range(len(logits)):
        bits, chosen, top = logits[row], ids[row], logprobs[row]
        _take_highest(bits[:vocab_size], shift, chosen, top)
        highest = top[0]
        for token in range(vocab_size, len(bits)):
            highest = max(highest, _float(bits[token], shift))
        label = _float(bits[max(labels[row], 0)], shift)
        # The tail is summed, not taken from 1: of a peaked distribution the difference would keep no correct digit.
        for token in chosen:
            bits[token] = _MINUS_INFINITY >> shift
        rest = _sum_of_exp(bits, shift, highest, sums)
        total = rest
        for value in top:
            total += np.exp(np.float64(value) - highest)
        log_total = np.log(total)
        for rank in range(len(top)):
            top[rank] = np.float64(top[rank]) - highest - log_total
        label_nll[row] = log_total - (np.float64(label) - highest) if labels[row] >= 0 else 0.0
        tail[row] = rest / total


@uncounted
def _take_highest(bits: np.ndarray, shift: int, chosen: np.ndarray, top: np.ndarray) -> None:
    """The k highest logits and their ids, by (value descending, id ascending).

    The highest so far make a heap, at whose root is the one to leave first. A later id enters for a higher value only.
    """
    k = len(top)
    for token in range(k):
        chosen[token], top[token] = token, _float(bits[token], shift)
    for place in range(k // 2 - 1, -1, -1):
        _sink(chosen, top, place, k)
    for start in range(k, len(bits), _GROUP):
        group = bits[start : start + _GROUP]
        if _above(group, shift, top[0]):
            for place in range(len(group)):
                value = _float(group[place], shift)
                if value > top[0]:
                    chosen[0], top[0] = start + place, value
                    _sink(chosen, top, 0, k)
    for last in range(k - 1, 0, -1):
        chosen[0], chosen[last] = chosen[last], chosen[0]
        top[0], top[last] = top[last], top[0]
        _sink(chosen, top, 0, last)


@inlined
def _sink(chosen: np.ndarray, top: np.ndarray, place: int, size: int) -> None:
    """Lets the entry at `place` in a heap of `size` down to where it belongs."""
    token, value = chosen[place], top[place]
    child = 2 * place + 1
    while child < size:
        other = child + 1
        if other < size and _leaves_before(chosen[other], top[other], chosen[child], top[child]):
            child = other
        if not _leaves_before(chosen[child], top[child], token, value):
            break
        chosen[place], top[place] = chosen[child], top[child]
        place, child = child, 2 * child + 1
    chosen[place], top[place] = token, value


@inlined
def _leaves_before(token: int, value: float, other_token: int, other_value: float) -> bool:
    return value < other_value or (value == other_value and token > other_token)


@inlined
def _above(bits: np.ndarray, shift: int, threshold: np.float32) -> np.int32:
    """How many there are."""
    count = _I(0)
    for place in range(len(bits)):
        count = _I(count + _I(_float(bits[place], shift) > threshold))
    return count


@uncounted
def _sum_of_exp(bits: np.ndarray, shift: int, highest: np.float32, sums: np.ndarray) -> float:
    """Of all logits less the highest; NaN where one of them is NaN, or none finite."""
    sums[:] = 0.0
    for start in range(0, len(bits), _SUMS):
        part = bits[start : start + _SUMS]
        for place in range(len(part)):
            sums[place] += _exp(_float(part[place], shift) - highest)
    total = 0.0
    for value in sums:
        total += value
    return total


@inlined
def _float(bits: int, shift: int) -> np.float32:
    return _I(_I(bits) << _I(shift)).view(np.float32)


@fused
def _exp(value: np.float32) -> np.float32:
    """Of a value that is not positive, to some units of the last place, by the polynomial of Cephes' expf; 0 where that
    is no normal number."""
    inside = value > _LEAST
    otherwise = _F(0.0) if value <= _LEAST else _F(np.nan)
    value = value if inside else _F(0.0)
    exponent = _I(value * _F(1.44269504) - _F(0.5))
    rest = value - _F(exponent) * _F(0.693359375)
    rest = rest + _F(exponent) * _F(2.12194440e-4)
    power = _F(1.9875691500e-4)
    power = power * rest + _F(1.3981999507e-3)
    power = power * rest + _F(8.3334519073e-3)
    power = power * rest + _F(4.1665795894e-2)
    power = power * rest + _F(1.6666665459e-1)
    power = power * rest + _F(5.0000001201e-1)
    power = power * (rest * rest) + rest + _F(1.0)
    return power * _I((exponent + _I(127)) << _I(23)).view(np.float32) if inside else otherwise
