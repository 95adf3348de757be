"""Every method at its own best: a declared space is searched with the same number of trials for each.

Settings are chosen on validation text with the first seed, trained with every seed, and compared on test text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from fusionx.contract.errors import ConfigError, IncompleteError
from fusionx.contract.files.storage import join
from fusionx.eval.results.evaluation import Evaluation
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.evaluation.evaluate_models import EvaluationJob, evaluate_each, held_out_chunks
from fusionx.pipelines.evaluation.reporting import trained_domains
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.study.cells import announce, cell_config, study_job
from fusionx.pipelines.study.grids import Cell
from fusionx.pipelines.study.outcomes import TrainingCourse, read_outcome
from fusionx.pipelines.study.recipe_results import MethodFinding, Trial, recipe_results, write_recipe
from fusionx.pipelines.training.training_jobs import count_unfinished, refuse_object_store, run_jobs
from fusionx.train.config import MethodConfig, TrainJob
from fusionx.train.distributed.ranks import is_main_process
from fusionx.train.state.result import finished_result

NAME = "recipe"
_OF_THE_NETWORK = ("selection.", "lambda_feed", "lambda_select")


@dataclass(frozen=True)
class _Candidate:
    """A trial that can be trained: `config` is the run's as the cell changes it."""

    cell: Cell
    values: dict[str, Any]
    config: FusionConfig

    def job(self, layout: Layout, seed: int) -> TrainJob:
        rate = self.config.train.optimizer_of(self.cell.method).learning_rate
        return study_job(self.config, layout, self.cell.method, seed, rate)


def run_recipe(config: FusionConfig, layout: Layout) -> str:
    """Trains and evaluates what is missing, and writes the table; returns its path.

    A trial that failed counts as one of its method's and is shown.

    Raises:
        ConfigError: `recipe.space` is empty, or a trial's config is not possible: all are checked before any training.
        DataError: shards or the test text are missing.
        IncompleteError: trainings failed; where every method has a trial that did not, the table is written.
        StoppedError: a signal asked for it; the same call goes on.
    """
    refuse_object_store(layout, "Studies")
    if not config.recipe.space:
        raise ConfigError(
            "There is nothing to search.",
            field="recipe.space",
            found="{}",
            expected="fields and the values to try, as in {optimizer.learning_rate: [1e-4, 2e-4], lambda_fuse: [1, 3]}",
        )
    chunks = held_out_chunks(layout, config.eval.split)
    first, *_ = config.train.seeds
    searched = [_possible(config, cell, values) for cell, values in drawn(config)]
    jobs = [trial.job(layout, first) for trial in searched]
    distinct = list({job.digest(): job for job in jobs}.values())
    announce(NAME, len(searched), distinct)
    failure = _trained(distinct, config)
    domains = trained_domains(config, layout)
    outcomes = [read_outcome(job, domains) for job in jobs]
    chosen = {name: _best(name, searched, outcomes) for name in config.train.methods}

    confirmed = {name: [trial.job(layout, seed) for seed in config.train.seeds] for name, trial in chosen.items()}
    final = [job for of_method in confirmed.values() for job in of_method]
    failure = _trained(final, config) or failure
    if count_unfinished(final):
        raise IncompleteError(
            "A chosen setting could not be trained with every seed.",
            file=layout.study(NAME),
            found="the errors above",
            remedy="mend the cause and run the same command again: finished trainings are kept",
        ) from failure
    models = [EvaluationJob(model, layout.evaluation("models", model.id)) for model in _untrained(config)]
    trained = {name: [_evaluation(layout, job) for job in of_method] for name, of_method in confirmed.items()}
    evaluate_each([*models, *(item for of_method in trained.values() for item in of_method)], chunks, config.eval)

    original, *sources = [Evaluation.load(item.output) for item in models]
    findings = []
    for name, trial in chosen.items():
        mine = [place for place, one in enumerate(searched) if one.cell.method == name]
        findings.append(
            MethodFinding(
                name,
                trial.values,
                [Trial(searched[at].values, outcomes[at], _seconds(jobs[at]), jobs[at].output) for at in mine],
                [Evaluation.load(item.output) for item in trained[name]],
                [_seconds(job) for job in confirmed[name]],
            )
        )
    results = recipe_results(config, findings, original, sources, domains)
    table = write_recipe(results, layout.study(NAME), writes=is_main_process())
    if failure is not None:
        raise IncompleteError(
            f"{count_unfinished(distinct)} of {len(distinct)} trials failed.",
            file=table,
            found="the errors above; the table shows them as failed",
            remedy="mend the cause and run the same command again: finished trainings are kept",
        ) from failure
    return table


def drawn(config: FusionConfig) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Every method's trials: all points of its part of the space, or `recipe.trials` of them, drawn evenly.

    A method without a teacher has the optimizer's fields only, one without a selection network none of the network's.
    Validations are equally many, whatever the number of epochs.
    """
    for name in config.train.methods:
        method = config.train.method(name)
        space = {field: values for field, values in config.recipe.space.items() if _applies(field, method)}
        for point in _points(list(space.values()), config.recipe.trials):
            values = dict(zip(space, point, strict=True))
            yield _cell(config, name, values), values


def _applies(field: str, method: MethodConfig) -> bool:
    if field.startswith("optimizer."):
        return True
    return method.teacher == "asn" or (method.teacher != "none" and not field.startswith(_OF_THE_NETWORK))


def _points(dimensions: Sequence[Sequence[Any]], count: int) -> list[tuple[Any, ...]]:
    """At most `count` different points, in which every value of a dimension is about equally frequent (as in a Latin
    hypercube); always the same ones."""
    size = prod(map(len, dimensions))
    if size <= count:
        return list(product(*dimensions))
    generator, found = random.Random(0), dict[tuple[int, ...], None]()
    while len(found) < count:
        columns = []
        for values in dimensions:
            column = [place % len(values) for place in range(count)]
            generator.shuffle(column)
            columns.append(column)
        found |= dict.fromkeys(zip(*columns, strict=True))
    return [tuple(values[at] for values, at in zip(dimensions, point, strict=True)) for point in list(found)[:count]]


def _cell(config: FusionConfig, method: str, values: Mapping[str, Any]) -> Cell:
    optimizer = {field.removeprefix("optimizer."): value for field, value in values.items() if "optimizer." in field}
    selection = {field.removeprefix("selection."): value for field, value in values.items() if "selection." in field}
    changes = {field: value for field, value in values.items() if "." not in field}
    if selection:
        changes["selection"] = selection
    epochs = config.train.optimizer_of(method).epochs
    factor = optimizer.get("epochs", epochs) / config.train.optimizer.epochs
    run = {"validate_every": max(1, round(factor * config.train.run.validate_every))}
    return Cell((method, *(f"{field} {value}" for field, value in values.items())), method, changes, optimizer, run)


def _possible(config: FusionConfig, cell: Cell, values: dict[str, Any]) -> _Candidate:
    return _Candidate(cell, values, cell_config(config, NAME, cell))


def _trained(jobs: list[TrainJob], config: FusionConfig) -> IncompleteError | None:
    try:
        run_jobs(jobs, config.train.jobs, overwrite=False)
    except IncompleteError as error:
        return error
    return None


def _best(method: str, trials: Sequence[_Candidate], outcomes: Sequence[TrainingCourse | None]) -> _Candidate:
    found = [
        (outcome.best.corpus, place)
        for place, (trial, outcome) in enumerate(zip(trials, outcomes, strict=True))
        if trial.cell.method == method and outcome is not None
    ]
    if not found:
        raise IncompleteError(
            f"No trial of '{method}' was trained.",
            found="the errors above",
            remedy="mend the cause, or change recipe.space, and run the same command again",
        )
    return trials[min(found)[1]]


def _untrained(config: FusionConfig) -> list[Any]:
    return config.models if config.eval.sources else [config.target]


def _evaluation(layout: Layout, job: TrainJob) -> EvaluationJob:
    return EvaluationJob(join(job.output, "best"), layout.evaluation("studies", f"{job.method_name}-{job.digest()}"))


def _seconds(job: TrainJob) -> float:
    return float((finished_result(job) or {}).get("seconds", 0.0))
