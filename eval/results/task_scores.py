"""Every model's score on every task and group of tasks, with its interval over the items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.over_seeds import INTERVAL_CONFIDENCE, mean
from fusionx.eval.results.statistics import interval_of_mean, wilson_interval

ALL = "all"
"""The group of all tasks whose score is a share of right answers: the skill accuracy."""


def task_scores(
    models: Mapping[str, Sequence[Evaluation]], methods: Mapping[str, Mapping[Any, Sequence[Evaluation]]]
) -> dict[str, Any]:
    """Every score with its interval.

    Args:
        models: one evaluation each, by name. methods: step -> one evaluation per seed, by method.

    Returns:
        `tasks`: name -> benchmark (None: of `eval.tasks`), metric, n, share (of right answers), higher_is_better;
        `groups`: benchmark -> its tasks, where they are shares and two or more, and `ALL`; `models` and `methods`: as
        in the arguments, but instead of evaluations `tasks` and `groups`, name -> score, interval, and of tasks stderr.
        A score is the mean over seeds, and its interval that of the items, which every seed has in common; those of
        groups suppose that tasks have no items in common.
    """
    every = [*models.values(), *(seeds for steps in methods.values() for seeds in steps.values())]
    tasks = _tasks([evaluation for seeds in every for evaluation in seeds])
    groups: dict[str, list[str]] = {}
    for name, about in tasks.items():
        if about["share"]:
            groups.setdefault(about["benchmark"], []).append(name)
            groups.setdefault(ALL, []).append(name)
    groups = {name: of for name, of in groups.items() if name and (len(of) > 1 or name == ALL)}
    return {
        "tasks": tasks,
        "groups": groups,
        "models": {name: _scores(seeds, tasks, groups) for name, seeds in models.items()},
        "methods": {
            name: {step: _scores(seeds, tasks, groups) for step, seeds in steps.items()}
            for name, steps in methods.items()
        },
    }


def _tasks(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "benchmark": figures.get("benchmark"),
            "metric": figures.get("metric", "exact_match"),
            "n": figures["n"],
            "share": all(evaluation.is_share(name) for evaluation in evaluations if name in evaluation.tasks),
            "higher_is_better": evaluations[0].higher_is_better(name),
        }
        for name, figures in sorted(evaluations[0].tasks.items())
    }


def _scores(
    seeds: Sequence[Evaluation], tasks: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    found = {name: _score([evaluation.tasks[name] for evaluation in seeds], about) for name, about in tasks.items()}
    return {"tasks": found, "groups": {name: _group([found[task] for task in of]) for name, of in groups.items()}}


def _score(seeds: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    score = mean([figures["score"] for figures in seeds])
    errors = [figures["stderr"] for figures in seeds if figures.get("stderr") is not None]
    stderr = mean(errors) if len(errors) == len(seeds) else None
    return {"score": score, "stderr": stderr, "interval": score_interval(score, stderr, about)}


def score_interval(score: float, stderr: float | None, about: Mapping[str, Any]) -> list[float] | None:
    """Wilson's for a share of right answers, the normal one for other scores; None of a single item."""
    if about["share"]:
        return wilson_interval(score, about["n"], INTERVAL_CONFIDENCE)
    if stderr is None:
        return None
    half = NormalDist().inv_cdf(0.5 + INTERVAL_CONFIDENCE / 2) * stderr
    return [score - half, score + half]


def _group(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every task counts the same."""
    values = [one["score"] for one in scores]
    return {"score": mean(values), "interval": interval_of_mean(values, [one["interval"] for one in scores])}
