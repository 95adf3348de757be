"""Fixed share (Herbster and Warmuth 1998): who is trusted at a position, judged by the text of the chunk before it.

Every candidate is weighed by how well it foretold the text so far, and a small share of the weights is dealt out anew
at every token, so that another candidate can take over where the text changes. Nothing is trained. With `eta` 1 the
mixture's loss on a text of T tokens is within (S + 1) log M + T h(S / T) nats of the best sequence of candidates that
changes S times, for `alpha` = S / T, h the entropy of a coin.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ALPHA = 0.02
ETA = 0.25
"""The best of those tried on real models (docs/results.md): trust that grows slowly."""

_FLOOR = 1e-6
"""No single token rules a candidate out."""


def fixed_share_weights(
    label_probs: npt.NDArray[np.floating], offsets: npt.NDArray[np.integer], alpha: float = ALPHA, eta: float = ETA
) -> npt.NDArray[np.float64]:
    """The candidates' weights at each position, from the labels of the positions before it in its chunk: [N, M].

    w is 1 / M at the first position of a chunk; then w_j <- w_j Q_j(label)^eta, normalised, and w <- (1 - alpha) w +
    alpha / M.

    Args:
        label_probs: [N, M], the probability of each position's label; NaN where a candidate says nothing there, which
            then counts as the others' mean. offsets: [chunks + 1], where chunks begin.
        alpha: the share that is dealt out anew at every token. eta: how fast candidates gain and lose trust.
    """
    m, lengths = label_probs.shape[1], np.diff(offsets)
    known = ~np.isnan(label_probs)
    said = np.where(known, label_probs, 0.0).astype(np.float64)
    mean = said.sum(1) / np.maximum(known.sum(1), 1)
    chunk = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(len(chunk)) - np.repeat(offsets[:-1], lengths)
    # One step of all chunks after the other; behind a chunk's end nobody says anything, so its weights stay finite.
    factors = np.ones((lengths.max(initial=0), len(lengths), m))
    factors[step, chunk] = np.maximum(np.where(known, said, mean[:, None]), _FLOOR) ** eta
    weights = np.empty_like(factors)
    weights[:1] = 1 / m
    for now, factor, after in zip(weights[:-1], factors[:-1], weights[1:], strict=True):
        np.multiply(now, factor, out=after)
        after *= (1 - alpha) / after.sum(1, keepdims=True)
        after += alpha / m
    return weights[step, chunk]
