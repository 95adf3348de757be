"""The token that follows every position, and the probability that stored distributions give it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusionx.contract.shards.codec import Distributions
from fusionx.contract.shards.parts import Ragged


def next_tokens(input_ids: Ragged, ends: Ragged) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The next token of every position, -1 at the end of a row, and the bytes of text that it takes; both int64 [N]."""
    labels, sizes = np.full(len(input_ids.values), -1, np.int64), np.zeros(len(input_ids.values), np.int64)
    labels[:-1] = input_ids.values[1:]
    sizes[:-1] = np.diff(ends.values)
    last = input_ids.offsets[1:][input_ids.lengths() > 0] - 1
    labels[last], sizes[last] = -1, 0
    return labels, sizes


def gold_probabilities(
    distributions: Distributions, probs: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], vocab_size: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Probability of every position's label, and whether the label is its most probable entry.

    A label that is not among a position's entries gets an equal share of the tail with all others that are not: the
    tail costs what knowing nothing costs. A position without entries, all tail, gives every token 1 / vocab_size.

    Args:
        distributions: N positions over E entries. probs: [E], the entries' probabilities. labels: int64 [N], -1: none.
        vocab_size: ids that the tail is shared among, the entries' included.

    Returns:
        float64 [N], positive, of no meaning where there is no label; bool [N].
    """
    counts = distributions.counts.astype(np.int64)
    found = np.flatnonzero(distributions.ids == np.repeat(labels, counts))
    position = np.searchsorted(np.cumsum(counts), found, side="right")
    gold = distributions.tail.astype(np.float64) / np.maximum(vocab_size - counts, 1)
    gold[position] = probs[found]
    hit = np.zeros(len(labels), bool)
    first = np.cumsum(counts) - counts
    hit[position] = found == first[position]
    return np.maximum(gold, least_probability(vocab_size)), hit


def least_probability(vocab_size: int) -> float:
    """Of a token that stored distributions leave nothing for: an even share of the least tail that fp16 has, 6e-8."""
    return float(np.finfo(np.float16).smallest_subnormal) / vocab_size
