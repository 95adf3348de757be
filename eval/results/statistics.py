"""The few statistics of scores and their differences: pass@k, Wilson's interval, paired bootstrap, exact McNemar, Holm,
Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

MIN_DOCUMENTS = 5
"""Fewer paired documents or items cannot speak of noise: resampling them hardly ever changes the sign."""

RESAMPLES_PER_BLOCK = 256


def paired_bootstrap(
    baseline: npt.NDArray[np.float64], model: npt.NDArray[np.float64], resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """Differences (model minus baseline) in bits per byte over resampled documents.

    Args:
        baseline: [documents, 2] nats and bytes per document.
        model: the same documents in the same order.
        resamples: how many times documents are drawn with replacement; both models get the same draw.

    Returns:
        float64 [resamples].
    """
    sums = np.concatenate([baseline, model], axis=1)
    drawn = np.concatenate([counts @ sums for counts in _draws(len(sums), resamples, seed)])
    return bits_per_byte(drawn[:, 2:]) - bits_per_byte(drawn[:, :2])


def paired_bootstrap_of_means(
    baseline: Sequence[float], model: Sequence[float], resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """Differences (model minus baseline) of the mean over resampled items; both models get the same draw.

    Returns:
        float64 [resamples].
    """
    differences = np.array(model, np.float64) - np.array(baseline, np.float64)
    return np.concatenate([counts @ differences for counts in _draws(len(differences), resamples, seed)]) / len(
        differences
    )


def paired_bootstrap_of_domains(
    baseline: Sequence[npt.NDArray[np.float64]],
    model: Sequence[npt.NDArray[np.float64]],
    resamples: int,
    seeds: Sequence[int],
) -> npt.NDArray[np.float64]:
    """Relative differences (model over baseline, less 1) of the mean over domains of bits per byte.

    Of a domain's n documents n - 1 are drawn, with replacement: with all n, domains of few documents would seem more
    certain than they are (McCarthy & Snowden 1985, "The bootstrap and finite population sampling").

    Args:
        baseline, model: of every domain [documents, 2] nats and bytes, the same documents in the same order, 2 or more.
        resamples: how many times documents are drawn; both models get the same draw.
        seeds: of every domain's draws.

    Returns:
        float64 [resamples].
    """
    means = np.zeros((2, resamples))
    for before, after, seed in zip(baseline, model, seeds, strict=True):
        sums = np.concatenate([before, after], axis=1)
        drawn = np.concatenate([counts @ sums for counts in _draws(len(sums), resamples, seed, len(sums) - 1)])
        means += np.stack([bits_per_byte(drawn[:, :2]), bits_per_byte(drawn[:, 2:])]) / len(seeds)
    return np.asarray(means[1] / means[0] - 1)


def _draws(count: int, resamples: int, seed: int, drawn: int | None = None) -> Iterator[npt.NDArray[np.float64]]:
    """How often each of `count` units is among the `drawn` (none: as many) that are drawn with replacement.

    Yields blocks [<= RESAMPLES_PER_BLOCK, count].
    """
    generator = np.random.default_rng(seed)
    shares = np.full(count, 1.0 / count)
    for start in range(0, resamples, RESAMPLES_PER_BLOCK):
        size = min(RESAMPLES_PER_BLOCK, resamples - start)
        yield generator.multinomial(count if drawn is None else drawn, shares, size=size).astype(np.float64)


def bits_per_byte(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From [..., 2] nats and bytes."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1.0) / math.log(2))


def percentile_interval(differences: npt.NDArray[np.float64], confidence: float) -> list[float]:
    """The bootstrap's interval, [low, high]."""
    tail = (1 - confidence) / 2
    return [float(value) for value in np.quantile(differences, [tail, 1 - tail])]


def bootstrap_p_value(differences: npt.NDArray[np.float64]) -> float:
    """One-sided p that the model is not worse: (1 + resamples without a loss) / (1 + resamples)."""
    return float((1 + np.count_nonzero(differences <= 0)) / (1 + len(differences)))


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased estimate of the chance that any of k samples passes: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1; k <= samples.
    """
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def wilson_interval(share: float, count: int, confidence: float) -> list[float]:
    """Wilson's score interval [low, high] of a share of `count` items (Wilson 1927, JASA 22, 209).

    Never of no width, and never outside 0 to 1, with few items and with none or all of them right, too. Of items that
    are shares themselves it is an upper bound: nothing from 0 to 1 with this mean scatters more than right and wrong.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def interval_of_mean(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> list[float]:
    """The interval of the mean of independent figures from their own: what each side is away, root of summed squares.

    Zou and Donner 2008, "Construction of confidence limits about effect measures", Statistics in Medicine 27, 1693.
    """
    mean = math.fsum(values) / len(values)
    below, above = (
        math.sqrt(math.fsum((value - limits[side]) ** 2 for value, limits in zip(values, intervals, strict=True)))
        for side in (0, 1)
    )
    return [mean - below / len(values), mean + above / len(values)]


def mcnemar_p_value(baseline: Sequence[float], model: Sequence[float]) -> float:
    """Exact one-sided McNemar test that the model loses more items (each 0 or 1) than it gains.

    With b items that only the baseline has right and c that only the model has right:
    P(Binomial(b + c, 1/2) >= b).
    """
    lost = sum(1 for before, after in zip(baseline, model, strict=True) if before and not after)
    gained = sum(1 for before, after in zip(baseline, model, strict=True) if after and not before)
    changed = lost + gained
    return float(sum(math.comb(changed, k) for k in range(lost, changed + 1)) / 2**changed)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down rule: rejecting those <= alpha keeps the family-wise error <= alpha."""
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def t_interval(values: Sequence[float], confidence: float) -> list[float] | None:
    """Student's t interval of the mean, [low, high]; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    half = t_quantile(0.5 + confidence / 2, len(values) - 1) * spread(values) / math.sqrt(len(values))
    return [mean - half, mean + half]


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def t_quantile(probability: float, degrees: int) -> float:
    """The t with P(T <= t) = probability, for probability > 1/2, by bisection of the exact distribution."""
    high = 1.0
    while t_probability(high, degrees) < probability:
        high *= 2
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def t_probability(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0 and whole degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine_squared = math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    # The finite series have degrees // 2 terms; each follows from the one before by a factor of cos^2 and integers.
    for step in range(degrees // 2):
        total += term
        numerator, denominator = (2 * step + 2, 2 * step + 3) if odd else (2 * step + 1, 2 * step + 2)
        term *= cosine_squared * numerator / denominator
    within = (2 / math.pi) * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + within / 2
