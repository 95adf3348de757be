"""From a cell of a study to its training: the run's config as the cell changes it, and where the training lies."""

from __future__ import annotations

import sys

from fusionx.contract.config import parse_config
from fusionx.contract.errors import DataError
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.study.grids import Cell
from fusionx.pipelines.training.training_jobs import count_unfinished, make_job
from fusionx.train.config import TrainJob
from fusionx.train.distributed.ranks import is_main_process
from fusionx.train.state.result import finished_result


def cell_config(config: FusionConfig, study: str, cell: Cell) -> FusionConfig:
    """The run's config as the cell changes it.

    Raises:
        ConfigError: there is no such config; it names study and cell.
    """
    raw = config.model_dump()
    overrides = config.train.overrides.get(cell.method, {})
    changes = {**{field: value for field, value in overrides.items() if field not in cell.optimizer}, **cell.changes}
    if "selection" in overrides and "selection" in cell.changes:
        changes["selection"] = {**overrides["selection"], **cell.changes["selection"]}  # type: ignore[dict-item]
    raw["train"] |= {"methods": [cell.method], "overrides": {cell.method: changes}}
    raw["train"]["optimizer"] |= cell.optimizer
    raw["train"]["run"] |= cell.run
    if cell.candidates is not None:
        raw["sources"] = raw["sources"][: cell.candidates - 1]
    return parse_config(FusionConfig, raw, source=f"study {study}, cell {', '.join(cell.labels)}")


def study_job(config: FusionConfig, layout: Layout, method: str, seed: int, learning_rate: float) -> TrainJob:
    """The cell's training: the run's own, if that is finished and the same, else one in the studies' folder."""
    job = make_job(config, layout, method, seed, learning_rate)
    try:
        if finished_result(job) is not None:
            return job
    except DataError:  # the run's folder holds a training that the cell changes
        pass
    return job.model_copy(update={"output": layout.study_training(method, job.digest())})


def announce(study: str, cells: int, jobs: list[TrainJob]) -> None:
    if is_main_process():
        print(
            f"[study {study}] {cells} cells, {len(jobs)} different trainings, {count_unfinished(jobs)} to do",
            file=sys.stderr,
        )
