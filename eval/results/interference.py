"""Knowledge interference: what a model does worse than a baseline, unit by unit.

A unit is a domain of the held-out text (bits per byte) or a task (share of items right). `degraded` is the raw
comparison; `degraded_beyond_noise` asks whether chance explains it: a paired bootstrap over documents for domains, the
exact McNemar test for tasks whose items are right or wrong, a paired bootstrap over items for tasks whose items are
other numbers; all one-sided, with Holm's correction over all units of the comparison. A score that is no mean over
items (F1, perplexity) is compared by the raw number only.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fusionx.contract.errors import DataError
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.statistics import (
    MIN_DOCUMENTS,
    bootstrap_p_value,
    holm,
    mcnemar_p_value,
    paired_bootstrap,
    paired_bootstrap_of_means,
    percentile_interval,
)

METHOD_NOTE = (
    "Degraded: worse than the baseline by the raw number. Beyond noise: one-sided at level 1 - confidence, paired "
    "bootstrap over documents for domains (at least five documents), exact McNemar test over items for tasks (paired "
    "bootstrap over items, at least five, where an item is another number; a score that is no mean over items is never "
    "beyond noise), Holm-corrected over all units of a comparison."
)

UnitKind = Literal["domain", "task"]


@dataclass(frozen=True)
class UnitChange:
    """One domain or task under the baseline and the model.

    Attributes:
        difference: model minus baseline, in bits per byte or share of items.
        loss: how much worse, as a share: relative bits per byte for a domain, points of accuracy for a task, relative
            for a task whose score is no share of right answers (`share`); negative where the model is better.
        p_value: one-sided, of no loss; `adjusted_p_value` after Holm's correction.
        interval: of the difference ([low, high], percentile bootstrap) for domains and for tasks that are judged by
            the bootstrap; None for other tasks and where there are too few documents or items.
        n: items of a task.
    """

    name: str
    kind: UnitKind
    baseline: float
    model: float
    difference: float
    loss: float
    degraded: bool
    p_value: float
    adjusted_p_value: float
    degraded_beyond_noise: bool
    interval: list[float] | None
    share: bool = False
    n: int = 0


@dataclass(frozen=True)
class Interference:
    """All units of one comparison; domains first, each kind by name."""

    units: list[UnitChange]

    def summary(self) -> dict[str, float]:
        """Counts, shares, mean and worst loss over the units, and over the degraded ones alone."""
        degraded = [unit for unit in self.units if unit.degraded]
        beyond = [unit for unit in self.units if unit.degraded_beyond_noise]
        losses = [unit.loss for unit in self.units]
        count = len(self.units)
        return {
            "units": count,
            "degraded": len(degraded),
            "degraded_beyond_noise": len(beyond),
            "degraded_share": len(degraded) / count if count else 0.0,
            "degraded_beyond_noise_share": len(beyond) / count if count else 0.0,
            "mean_loss": math.fsum(losses) / count if count else 0.0,
            "mean_loss_of_degraded": math.fsum(u.loss for u in degraded) / len(degraded) if degraded else 0.0,
            "worst_loss": max([0.0, *losses]),
        }


def compare(
    baseline: Evaluation, model: Evaluation, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interference:
    """Compares two evaluations of the same held-out text and tasks.

    Raises:
        DataError: the two were made of different data or with different settings.
    """
    check_comparable(baseline, model)
    raw = [_domain_change(name, baseline, model, resamples, confidence, seed) for name in sorted(baseline.domains)]
    raw += [_task_change(name, baseline, model, resamples, confidence, seed) for name in sorted(baseline.tasks)]
    level = 1 - confidence
    units = []
    for unit, adjusted in zip(raw, holm([unit.p_value for unit in raw]), strict=True):
        beyond = unit.degraded and adjusted <= level
        units.append(replace(unit, adjusted_p_value=adjusted, degraded_beyond_noise=beyond))
    return Interference(units)


def check_comparable(baseline: Evaluation, model: Evaluation) -> None:
    """Refuses to compare evaluations of different data, settings or precision.

    Raises:
        DataError: naming what differs.
    """
    for name in ("data_digest", "config_digest"):
        expected, found = getattr(baseline, name), getattr(model, name)
        if expected != found:
            raise DataError(
                "Two evaluations cannot be compared.",
                file=model.model,
                field=name,
                found=found,
                expected=f"{expected} (as in {baseline.model})",
                remedy="evaluate both models again with the same config and held-out text",
            )
    for name in sorted(baseline.tasks.keys() | model.tasks.keys()):
        expected, found = _prompts(baseline, name), _prompts(model, name)
        if expected != found:
            raise DataError(
                "Two scores are of different prompts.",
                file=model.model,
                field=name,
                found=found,
                expected=f"{expected} (as in {baseline.model})",
                remedy="run the benchmarks of both models again with the same config and data",
            )
    # `dtype: auto` is bfloat16 on a GPU and float32 on a CPU: two machines would differ by rounding alone.
    expected, found = baseline.versions.get("dtype"), model.versions.get("dtype")
    if expected and found and expected != found:
        raise DataError(
            "Two evaluations were made in different precisions.",
            file=model.model,
            field="dtype",
            found=found,
            expected=f"{expected} (as in {baseline.model})",
            remedy="set eval.dtype, so that every model is evaluated again in one precision",
        )


def _prompts(evaluation: Evaluation, name: str) -> str:
    """The digest of a benchmark task's prompts; those of the run's own tasks are part of `data_digest`."""
    task = evaluation.tasks.get(name)
    return "no score" if task is None else task.get("prompts_digest", "")


def _domain_change(
    name: str, baseline: Evaluation, model: Evaluation, resamples: int, confidence: float, seed: int
) -> UnitChange:
    before, after = baseline.domains[name]["bits_per_byte"], model.domains[name]["bits_per_byte"]
    before_sums = np.array(baseline.documents[name], np.float64).reshape(-1, 2)
    after_sums = np.array(model.documents[name], np.float64).reshape(-1, 2)
    p_value, interval = 1.0, None
    if len(before_sums) >= MIN_DOCUMENTS:
        differences = paired_bootstrap(before_sums, after_sums, resamples, unit_seed(name, seed))
        p_value, interval = bootstrap_p_value(differences), percentile_interval(differences, confidence)
    return UnitChange(
        name=name,
        kind="domain",
        baseline=before,
        model=after,
        difference=after - before,
        loss=(after - before) / before if before else 0.0,
        degraded=after > before,
        p_value=p_value,
        adjusted_p_value=p_value,
        degraded_beyond_noise=False,
        interval=interval,
    )


def unit_seed(name: str, seed: int) -> int:
    """Every unit draws its own documents or items, whatever other units there are."""
    return seed + zlib.crc32(name.encode())


def _task_change(
    name: str, baseline: Evaluation, model: Evaluation, resamples: int, confidence: float, seed: int
) -> UnitChange:
    before, after = baseline.tasks[name]["score"], model.tasks[name]["score"]
    before_items, after_items = baseline.items.get(name, []), model.items.get(name, [])
    p_value, interval = 1.0, None
    sign = 1 if baseline.higher_is_better(name) else -1
    if len(before_items) != len(after_items):
        pass  # of one of the two the score is no mean over items
    elif {*before_items, *after_items} <= {0, 1}:
        p_value = mcnemar_p_value(*((before_items, after_items) if sign > 0 else (after_items, before_items)))
    elif len(before_items) >= MIN_DOCUMENTS:
        differences = paired_bootstrap_of_means(before_items, after_items, resamples, unit_seed(name, seed))
        p_value, interval = bootstrap_p_value(-sign * differences), percentile_interval(differences, confidence)
    share = baseline.is_share(name) and model.is_share(name)
    worse = sign * (before - after)
    return UnitChange(
        name=name,
        kind="task",
        baseline=before,
        model=after,
        difference=after - before,
        loss=worse if share or not before else worse / abs(before),
        degraded=worse > 0,
        p_value=p_value,
        adjusted_p_value=p_value,
        degraded_beyond_noise=False,
        interval=interval,
        share=share,
        n=len(after_items),
    )
