"""Where else a training's numbers are shown, each by its own library: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from fusionx.contract.errors import ConfigError
from fusionx.contract.extras import import_extra
from fusionx.train.config import TrainJob

_JOB_TAG = "fusionx.job"
_PARAMETERS_AT_ONCE, _PARAMETER_LENGTH = 100, 6000
"""What a tracking server of MLflow takes in one call, and per value."""
_NOT_IN_NAMES = r"[^\w.\- :/]"
"""MLflow refuses other characters, which a corpus's domains may have."""


def dashboards_of(folder: Path, job: TrainJob, first_step: int) -> list[Dashboard]:
    """Those that the job asks for. `first_step`: 0 for a new run, else the first step that is logged anew.

    Raises:
        ConfigError: one of them cannot be used.
    """
    made: list[Dashboard] = []
    if job.run.tensorboard:
        made.append(_TensorBoard(folder / "tensorboard", first_step))
    if job.run.wandb is not None:
        made.append(_WandB(folder, job))
    if job.run.mlflow is not None:
        made.append(_MLflow(job))
    return made


class Dashboard(Protocol):
    def show(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    """An event file per run of the command. `purge_step`: the first step that it logs anew; older files' are hidden."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        import_extra("tensorboard", "logging", "train.run.tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=purge_step)

    def show(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """One W&B run per job, whose id is the job's digest: a resumed job goes on in it.

    W&B takes no step twice: what a resumed job logs again it ignores, and it is the same.
    """

    def __init__(self, folder: Path, job: TrainJob) -> None:
        wandb = import_extra("wandb", "wandb", "train.run.wandb")
        try:
            self._run = wandb.init(
                project=job.run.wandb,
                id=job.digest(),
                resume="allow",
                name=f"{job.target}/{job.method_name}/seed-{job.seed}",
                group=job.method_name,
                config=job.content(),
                dir=str(folder),
            )
        except wandb.Error as error:
            raise ConfigError(
                "Weights & Biases cannot be used.",
                field="train.run.wandb",
                found=str(error).strip().splitlines()[0],
                remedy="run `wandb login`, or set WANDB_MODE=offline",
            ) from None

    def show(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def _settings(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Of what a job depends on, as optimizer.learning_rate and so on."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in _settings(value))
        else:
            yield key, str(value)


class _MLflow:
    """One run per job in the experiment, which its tag knows: a resumed job goes on in it.

    What is logged again has the same values at the same steps. A server that is lost later on costs its figures, not
    the training: they are all in log.jsonl.
    """

    def __init__(self, job: TrainJob) -> None:
        mlflow = import_extra("mlflow", "mlflow", "train.run.mlflow")
        self._entities, self._error = mlflow.entities, mlflow.exceptions.MlflowException
        assert job.run.mlflow is not None
        try:
            self._client = mlflow.MlflowClient()
            self._run = self._open(job, job.run.mlflow)
        except (self._error, OSError) as error:
            raise ConfigError(
                "MLflow cannot be used.",
                field="train.run.mlflow",
                found=str(error).strip().splitlines()[0],
                remedy="set MLFLOW_TRACKING_URI to a server that answers, or to sqlite:///mlflow.db "
                "(pip install mlflow)",
            ) from None

    def _open(self, job: TrainJob, experiment: str) -> str:
        """The id of the job's run, which is made where there is none."""
        found = self._client.get_experiment_by_name(experiment)
        place = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        tag = f"tags.`{_JOB_TAG}` = '{job.digest()}'"
        for run in self._client.search_runs([place], tag, max_results=1):
            self._client.update_run(run.info.run_id, status="RUNNING")
            return str(run.info.run_id)
        name = f"{job.target}/{job.method_name}/seed-{job.seed}"
        made = str(self._client.create_run(place, tags={_JOB_TAG: job.digest()}, run_name=name).info.run_id)
        params = [self._entities.Param(key, text[:_PARAMETER_LENGTH]) for key, text in _settings(job.content())]
        for start in range(0, len(params), _PARAMETERS_AT_ONCE):
            self._client.log_batch(made, params=params[start : start + _PARAMETERS_AT_ONCE])
        return made

    def show(self, values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        named = {re.sub(_NOT_IN_NAMES, "_", name): value for name, value in values.items()}
        metrics = [self._entities.Metric(name, value, now, step) for name, value in named.items()]
        self._try(lambda: self._client.log_batch(self._run, metrics=metrics))

    def close(self) -> None:
        self._try(lambda: self._client.set_terminated(self._run))

    def _try(self, call: Callable[[], object]) -> None:
        if self._client is None:
            return
        try:
            call()
        except (self._error, OSError) as error:
            print(f"MLflow is not told any more: {str(error).strip().splitlines()[0]}", file=sys.stderr, flush=True)
            self._client = None
