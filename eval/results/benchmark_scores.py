"""All benchmark scores of a run in one JSON file, which is also what a stopped run goes on from.

A score belongs to weights, settings and a precision, not to a folder's name: a best step that is the last one, too, is
measured once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from fusionx.contract.errors import DataError
from fusionx.contract.files.sealed import sealed_bytes
from fusionx.contract.files.storage import exists, read_bytes, write_bytes
from fusionx.eval.results.evaluation import Evaluation, Number, read_json

FIGURES = ("benchmark", "metric", "n", "score", "stderr", "truncated", "prompts_digest", "higher_is_better")
"""What an evaluation tells of a benchmark's task."""


@dataclass(frozen=True)
class TaskScore:
    """One model on one task of a benchmark.

    Attributes:
        metric: what `score` is the mean of; `metrics` are all that was computed.
        stderr: the standard error of the score over the items; None for a single item.
        truncated: items whose prompt began before the model's context and was cut.
        version: of what ran the task: lm-evaluation-harness, or a task of our own.
        items: every item in order: 0 or 1, or the share of its samples that are right; none where the score is not
            their mean (F1, perplexity).
    """

    benchmark: str
    metric: str
    n: int
    score: float
    stderr: float | None
    truncated: int
    metrics: dict[str, float]
    version: str
    prompts_digest: str
    items: list[Number]
    higher_is_better: bool = True


@dataclass(frozen=True)
class ModelIdentity:
    """What a model's scores depend on."""

    weights_digest: str
    settings_digest: str
    dtype: str


@dataclass(frozen=True)
class _Model(ModelIdentity):
    tasks: dict[str, TaskScore]


@dataclass(frozen=True)
class _File:
    """What is read back of the file; the means in it are computed anew."""

    format: Literal[2]
    models: dict[str, _Model]


@dataclass
class BenchmarkScores:
    """Model folder -> what it holds, and the scores of its tasks by name."""

    models: dict[str, ModelIdentity] = field(default_factory=dict)
    tasks: dict[str, dict[str, TaskScore]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> BenchmarkScores:
        """Reads the file; without one there are no scores yet.

        Raises:
            DataError: the file is something else.
        """
        scores = cls()
        if not exists(path):
            return scores
        for model, found in read_json(_File, path, "The file holds no benchmark scores.").models.items():
            scores.models[model] = ModelIdentity(*(getattr(found, part.name) for part in fields(ModelIdentity)))
            scores.tasks[model] = found.tasks
        return scores

    def save(self, path: str | Path) -> None:
        """Writes what has changed, whole or not at all; `benchmarks` are means in which every task counts the same."""
        models = {
            model: {
                **asdict(identity),
                "benchmarks": _means(list(self.tasks[model].values())),
                "tasks": {name: asdict(score) for name, score in self.tasks[model].items()},
            }
            for model, identity in self.models.items()
        }
        content = {"format": 2, "models": models}
        data = sealed_bytes(content, finite=True)
        if not exists(path) or read_bytes(path) != data:
            write_bytes(path, data)

    def begin(self, model: str, identity: ModelIdentity) -> None:
        """Makes a place for a model, with whatever was measured of the same weights; other weights' scores go."""
        known = self._of(identity)
        self.models[model], self.tasks[model] = identity, known

    def _of(self, identity: ModelIdentity) -> dict[str, TaskScore]:
        found: dict[str, TaskScore] = {}
        for model, known in self.models.items():
            if known == identity:
                found |= self.tasks[model]
        return found

    def joined(self, evaluation: Evaluation, benchmarks: Sequence[str]) -> Evaluation:
        """The evaluation with its model's benchmark scores among its tasks.

        Raises:
            DataError: the model has no scores of one of the benchmarks.
        """
        identity = ModelIdentity(
            evaluation.weights_digest, evaluation.settings_digest, evaluation.versions.get("dtype", "")
        )
        known = self._of(identity)
        missing = set(benchmarks) - {score.benchmark for score in known.values()}
        if missing:
            raise DataError(
                "A model has no benchmark scores.",
                file=evaluation.model,
                field="eval.benchmarks",
                found=f"none of {', '.join(sorted(missing))} for these weights in {identity.dtype}",
                remedy="run `fusionx eval` again; with several machines, set eval.dtype",
            )
        wanted = {name: score for name, score in known.items() if score.benchmark in benchmarks}
        figures = {name: {key: getattr(score, key) for key in FIGURES} for name, score in wanted.items()}
        items = {name: score.items for name, score in wanted.items()}
        return replace(evaluation, tasks=evaluation.tasks | figures, items=evaluation.items | items)


def _means(scores: Sequence[TaskScore]) -> dict[str, dict[str, Any]]:
    means = {}
    for benchmark in dict.fromkeys(score.benchmark for score in scores):
        values = [score.score for score in scores if score.benchmark == benchmark]
        means[benchmark] = {"tasks": len(values), "score": sum(values) / len(values)}
    return means
