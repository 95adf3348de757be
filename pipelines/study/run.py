"""Carries out a study: a training for every cell and seed, then its table and figure. Finished trainings are only read.

A training lies in a folder that is named by its content, so equal ones - of one study, of several, of the run itself -
are made once.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusionx.contract.errors import ConfigError, IncompleteError
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.evaluation.reporting import trained_domains
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.study import STUDIES
from fusionx.pipelines.study.cells import announce, cell_config, study_job
from fusionx.pipelines.study.grids import make_study
from fusionx.pipelines.study.outcomes import read_outcome
from fusionx.pipelines.study.recipe import NAME as RECIPE
from fusionx.pipelines.study.recipe import run_recipe
from fusionx.pipelines.study.report import write_study
from fusionx.pipelines.study.results import CellOutcome, study_results
from fusionx.pipelines.training.training_jobs import count_unfinished, refuse_object_store, run_jobs, tune
from fusionx.train.distributed.ranks import is_main_process


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
    if name == RECIPE:
        if method is not None:
            raise ConfigError(
                "This study searches all methods of the run.",
                field="--method",
                found=method,
                expected="no --method",
                remedy="list the methods in train.methods",
            )
        return StudyFiles(run_recipe(config, layout), [])
    refuse_object_store(layout, "Studies")
    study = make_study(name, config, method)
    configs = [cell_config(config, study.name, cell) for cell in study.cells]
    tuning = tune(config, layout)
    jobs = [
        [study_job(own, layout, cell.method, seed, tuning.rate(cell.method)) for seed in config.train.seeds]
        for own, cell in zip(configs, study.cells, strict=True)
    ]
    distinct = list({job.digest(): job for of_cell in jobs for job in of_cell}.values())
    announce(study.name, len(study.cells), distinct)
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
