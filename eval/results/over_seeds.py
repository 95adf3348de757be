"""Figures of one model over the seeds that it was trained with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.interference import Interference
from fusionx.eval.results.statistics import spread, t_interval, wilson_interval

INTERVAL_CONFIDENCE = 0.95


def combine(values: Sequence[Any], reduce: Callable[[Sequence[float]], float]) -> Any:
    """`reduce` over the numbers at every place of equally nested dictionaries; None where any of them is None."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: combine([value[key] for value in values], reduce) for key in first}
    return None if any(value is None for value in values) else reduce(values)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def over_seeds(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, confidence interval (None for one seed) and the values themselves; None of nothing."""
    if not values:
        return None
    return {"mean": mean(values), "ci95": t_interval(values, INTERVAL_CONFIDENCE), "per_seed": list(values)}


def mean_documents(seeds: Sequence[Mapping[str, Sequence[Sequence[float]]]]) -> dict[str, list[list[float]]]:
    """Every document's figures as their mean over seeds."""
    return {
        domain: [[mean(values) for values in zip(*same, strict=True)]
                 for same in zip(*(of[domain] for of in seeds), strict=True)]
        for domain in seeds[0]
    }  # fmt: skip


def interference_over_seeds(
    original: Evaluation,
    seeds: Mapping[int, Evaluation],
    ct: Mapping[int, Evaluation],
    absent_domains: Sequence[str],
    judge: Callable[[Evaluation, Evaluation], Interference],
) -> dict[str, Any]:
    """One model against the original target, and against continual training.

    Args:
        seeds: the model's evaluations. ct: those that they are compared with, of the same seeds or fewer.
        judge: `eval.results.interference.compare`, set up.

    Returns:
        `per_seed`, `mean` (`Interference.summary`) and `units` against the original target; `vs_ct_per_seed` and
        `vs_ct_mean` (None without any) against ct.

    Raises:
        DataError: evaluations are of different data and cannot be compared.
    """
    to_target = {seed: judge(original, evaluation) for seed, evaluation in seeds.items()}
    to_ct = {seed: judge(other, seeds[seed]).summary() for seed, other in ct.items()}
    summaries = {seed: result.summary() for seed, result in to_target.items()}
    return {
        "per_seed": {str(seed): summary for seed, summary in summaries.items()},
        "mean": combine(list(summaries.values()), mean),
        "vs_ct_per_seed": {str(seed): summary for seed, summary in to_ct.items()},
        "vs_ct_mean": combine(list(to_ct.values()), mean) if to_ct else None,
        "units": _units(absent_domains, to_target),
    }


def _units(absent_domains: Sequence[str], per_seed: Mapping[int, Interference]) -> list[dict[str, Any]]:
    """Per domain and task: means over seeds, and in how many seeds it got worse."""
    rows = []
    for same in zip(*(result.units for result in per_seed.values()), strict=True):
        share, score = all(unit.share for unit in same), mean([unit.model for unit in same])
        rows.append(
            {
                "name": same[0].name,
                "kind": same[0].kind,
                "absent": same[0].kind == "domain" and same[0].name in absent_domains,
                "share": share,
                "baseline": same[0].baseline,
                "model": score,
                "baseline_interval": wilson_interval(same[0].baseline, same[0].n, INTERVAL_CONFIDENCE)
                if share
                else None,
                "model_interval": wilson_interval(score, same[0].n, INTERVAL_CONFIDENCE) if share else None,
                "difference": mean([unit.difference for unit in same]),
                "loss": mean([unit.loss for unit in same]),
                "loss_spread": spread([unit.loss for unit in same]) if len(same) > 1 else None,
                "seeds": len(same),
                "degraded_seeds": sum(unit.degraded for unit in same),
                "degraded_beyond_noise_seeds": sum(unit.degraded_beyond_noise for unit in same),
                "adjusted_p_values": [unit.adjusted_p_value for unit in same],
                "intervals": [unit.interval for unit in same],
            }
        )
    return rows
