"""Carries out a study: a training for every cell and seed, then its table and figure. Finished trainings are only read.

A training lies in a folder that is named by its content, so equal ones - of one study, of several, of the run itself -
are made once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fusionx.contract.config import parse_config
from fusionx.contract.errors import DataError, IncompleteError
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.evaluation.reporting import trained_domains
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.study import STUDIES
from fusionx.pipelines.study.grids import Cell, Study, make_study
from fusionx.pipelines.study.outcomes import read_outcome
from fusionx.pipelines.study.report import write_study
from fusionx.pipelines.study.results import CellOutcome, study_results
from fusionx.pipelines.training.training_jobs import count_unfinished, make_job, refuse_object_store, run_jobs, tune
from fusionx.train.config import TrainJob
from fusionx.train.distributed.ranks import is_main_process
from fusionx.train.state.result import finished_result


@dataclass(frozen=True)
class StudyFiles:
    """What a study wrote."""

    table: str
    figures: list[str]


def run_study(config: FusionConfig, layout: Layout, name: str, method: str | None = None) -> StudyFiles:
    """Trains what is missing and writes table and figures, also where trainings failed, which they show as failed.

    Args:
        method: whose fields the study changes; None: the study's own choice.

    Raises:
        ConfigError: a cell's config is not possible; all are checked before anything is trained.
        DataError: shards are missing.
        IncompleteError: a training failed; what the others gave is written.
        StoppedError: a signal asked for it; the same call goes on.
    """
    refuse_object_store(layout)
    study = make_study(name, config, method)
    configs = [cell_config(config, study, cell) for cell in study.cells]
    tuning = tune(config, layout)
    jobs = [
        [study_job(own, layout, cell.method, seed, tuning.rate(cell.method)) for seed in config.train.seeds]
        for own, cell in zip(configs, study.cells, strict=True)
    ]
    distinct = list({job.digest(): job for of_cell in jobs for job in of_cell}.values())
    _announce(study, distinct)
    failure = None
    try:
        run_jobs(distinct, config.train.jobs, overwrite=False)
    except IncompleteError as error:
        failure = error
    folder = layout.study(name if method is None else f"{name}-{method}")
    domains = trained_domains(config, layout)
    cells = [
        CellOutcome(cell, of_cell, [read_outcome(job, domains) for job in of_cell])
        for cell, of_cell in zip(study.cells, jobs, strict=True)
    ]
    results = study_results(study, STUDIES[name], cells, config.model_dump(mode="json"))
    files = StudyFiles(*write_study(results, folder, writes=is_main_process()))
    if failure is not None:
        failed = count_unfinished(distinct)
        raise IncompleteError(
            f"{failed} of {len(distinct)} trainings of the study failed.",
            file=files.table,
            found="the errors above; the table shows them as failed",
            remedy="mend the cause and run the same command again: finished trainings are kept",
        ) from failure
    return files


def cell_config(config: FusionConfig, study: Study, cell: Cell) -> FusionConfig:
    """The run's config as the cell changes it.

    Raises:
        ConfigError: there is no such config; it names study and cell.
    """
    raw = config.model_dump()
    overrides = config.train.overrides.get(cell.method, {})
    changes = {**overrides, **cell.changes}
    if "selection" in overrides and "selection" in cell.changes:
        changes["selection"] = {**overrides["selection"], **cell.changes["selection"]}  # type: ignore[dict-item]
    raw["train"] |= {"methods": [cell.method], "overrides": {cell.method: changes}}
    raw["train"]["optimizer"] |= cell.optimizer
    raw["train"]["run"] |= cell.run
    if cell.candidates is not None:
        raw["sources"] = raw["sources"][: cell.candidates - 1]
    return parse_config(FusionConfig, raw, source=f"study {study.name}, cell {', '.join(cell.labels)}")


def study_job(config: FusionConfig, layout: Layout, method: str, seed: int, learning_rate: float) -> TrainJob:
    """The cell's training: the run's own, if that is finished and the same, else one in the studies' folder."""
    job = make_job(config, layout, method, seed, learning_rate)
    try:
        if finished_result(job) is not None:
            return job
    except DataError:  # the run's folder holds a training that the cell changes
        pass
    return job.model_copy(update={"output": layout.study_training(method, job.digest())})


def _announce(study: Study, jobs: list[TrainJob]) -> None:
    if is_main_process():
        print(
            f"[study {study.name}] {len(study.cells)} cells, {len(jobs)} different trainings, "
            f"{count_unfinished(jobs)} to do",
            file=sys.stderr,
        )
