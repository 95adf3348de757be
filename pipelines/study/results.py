"""The numbers of a study over its seeds; table and figures read these only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fusionx.eval.report.figures.canvas import mean_shares
from fusionx.eval.results.over_seeds import over_seeds
from fusionx.pipelines.study.grids import Cell, Labels, Study
from fusionx.pipelines.study.outcomes import TrainingCourse
from fusionx.train.config import TrainJob

MEASURES = ("corpus", "absent", "perplexity", "worse", "step")
BASELINES = ("ct", "fusellm")
"""Whose final perplexity the study `efficiency` asks the other methods for."""


@dataclass(frozen=True)
class CellOutcome:
    """A cell's trainings, seed by seed; None stands for one that failed."""

    cell: Cell
    jobs: list[TrainJob]
    outcomes: list[TrainingCourse | None]

    @property
    def finished(self) -> list[TrainingCourse]:
        return [outcome for outcome in self.outcomes if outcome is not None]


def study_results(study: Study, title: str, cells: Sequence[CellOutcome], config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that results.json holds.

    cells: per cell `best` and `last` (`MEASURES` over seeds), `change` (corpus bits per byte at the best step relative
    to the cell `against`, paired by seed), `chosen`, `curve`, `course` (shares of the
    fusion weight by step) and, where asked for, `reached`.
    """
    by_labels = {found.cell.labels: found for found in cells}
    start = next((outcome.start for found in cells for outcome in found.finished), None)
    return {
        "study": study.name,
        "title": title,
        "figure": study.figure,
        "columns": list(study.columns),
        "seeds": [job.seed for job in cells[0].jobs],
        "original": None if start is None else asdict(start),
        "cells": [_cell(found, by_labels, study.figure == "efficiency") for found in cells],
        "config": dict(config),
    }


def _cell(found: CellOutcome, by_labels: Mapping[Labels, CellOutcome], efficiency: bool) -> dict[str, Any]:
    cell, finished = found.cell, found.finished
    against = by_labels[cell.against] if cell.against is not None else None
    course = mean_shares([dict(one.weights) for one in finished if one.weights])
    made: dict[str, Any] = {
        "labels": list(cell.labels),
        "method": cell.method,
        "against": None if cell.against is None else list(cell.against),
        "same_as_against": against is not None
        and [job.digest() for job in against.jobs] == [job.digest() for job in found.jobs],
        "trainings": {str(job.seed): job.output for job in found.jobs},
        "failed": [job.seed for job, outcome in zip(found.jobs, found.outcomes, strict=True) if outcome is None],
        "best": {name: over_seeds(_present(getattr(one.best, name) for one in finished)) for name in MEASURES},
        "last": {name: over_seeds(_present(getattr(one.last, name) for one in finished)) for name in MEASURES},
        "change": None if against is None else _change(found, against),
        "chosen": over_seeds(_present(one.chosen for one in finished)),
        "curve": _mean_curve(finished),
        "course": dict(zip(("steps", "shares"), course, strict=True)),
    }
    if efficiency:
        made["reached"] = {
            labels[0]: _reached(found, baseline) for labels, baseline in by_labels.items() if labels[0] in BASELINES
        }
    return made


def _present(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _change(found: CellOutcome, against: CellOutcome) -> dict[str, Any] | None:
    """Relative difference in bits per byte on the corpus's domains, each at its best step, of equal seeds."""
    return over_seeds(
        [
            ours.best.corpus / theirs.best.corpus - 1
            for ours, theirs in zip(found.outcomes, against.outcomes, strict=True)
            if ours is not None and theirs is not None
        ]
    )


def _reached(found: CellOutcome, baseline: CellOutcome) -> dict[str, Any]:
    """Steps and tokens to the baseline's last perplexity of the same seed, and steps as a share of the baseline's."""
    pairs = [
        (ours.reached(theirs.last.perplexity), theirs.last.step)
        for ours, theirs in zip(found.outcomes, baseline.outcomes, strict=True)
        if ours is not None and theirs is not None
    ]
    at = [(where, steps) for where, steps in pairs if where is not None]
    return {
        "steps": over_seeds([where[0] for where, _ in at]),
        "tokens": over_seeds([where[1] for where, _ in at]),
        "share": over_seeds([where[0] / steps for where, steps in at]),
        "never": len(pairs) - len(at),
    }


def _mean_curve(outcomes: Sequence[TrainingCourse]) -> list[dict[str, float]]:
    """Perplexity by step, over the steps that every seed was validated at."""
    by_seed = [{point.step: point for point in outcome.curve} for outcome in outcomes]
    steps = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    return [
        {"step": step}
        | {name: _mean([getattr(seed[step], name) for seed in by_seed]) for name in ("tokens", "perplexity", "corpus")}
        for step in steps
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
