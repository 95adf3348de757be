"""Dashboards: TensorBoard's own files, and stand-ins for Weights & Biases and MLflow."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from shard_builder import make_job

from fusionx.contract.errors import ConfigError
from fusionx.train.config import TrainJob
from fusionx.train.loop.metrics_log import LogMark, MetricsLog


def job_of(folder: Path, **run: Any) -> TrainJob:
    return make_job(folder, "tokens", {"prose": "p"}, folder, run=run)


def tensorboard_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_no_step_twice(tmp_path: Path) -> None:
    """Neither after a resume nor after a start from scratch."""
    job = job_of(tmp_path, tensorboard=True)
    with MetricsLog(tmp_path, job, LogMark(), 0) as log:
        log.write("validation", 0, bits_per_byte=9.0)
        log.write("step", 1, loss=7.0)
    with MetricsLog(tmp_path, job, LogMark(), 0) as log:
        log.write("validation", 0, bits_per_byte=3.0)
        for step in range(1, 5):
            log.write("step", step, loss=float(step))
            if step == 2:
                kept = log.mark()
    with MetricsLog(tmp_path, job, kept, 2) as log:
        for step in range(3, 6):
            log.write("step", step, loss=step + 0.5)
    assert tensorboard_of(tmp_path) == {
        "validation/bits_per_byte": [(0, 3.0)],
        "loss/total": [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5), (5, 5.5)],
    }


class StandInWandB(ModuleType):
    """The part of W&B that is used; it takes no step that is smaller than the last, as the real one."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, dict[int, dict[str, float]]] = {}
        self.given: dict[str, Any] = {}
        self.open = 0

    def init(self, **given: Any) -> Any:
        if given["project"] == "closed":
            raise self.Error("api_key not configured\nmore")
        assert given["resume"] == "allow"
        self.given = given
        self.open += 1
        rows = self.runs.setdefault(given["id"], {})

        class Run:
            def log(_, values: dict[str, float], step: int) -> None:  # noqa: N805
                if step >= max(rows, default=0):
                    rows.setdefault(step, {}).update(values)

            def finish(_) -> None:  # noqa: N805
                self.open -= 1

        return Run()


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = StandInWandB()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    job = job_of(tmp_path, wandb="fusion")
    with MetricsLog(tmp_path, job, LogMark(), 0) as log:
        log.write("step", 1, loss=1.0)
        kept = log.mark()
        log.write("step", 2, loss=2.0)
    with MetricsLog(tmp_path, job, kept, 1) as log:
        log.write("step", 2, loss=2.0)
        log.write("validation", 2, bits_per_byte=3.0)
    assert wandb.runs == {
        job.digest(): {1: {"loss/total": 1.0}, 2: {"loss/total": 2.0, "validation/bits_per_byte": 3.0}}
    }
    assert (wandb.given["project"], wandb.given["config"]) == ("fusion", job.content())
    assert wandb.open == 0
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        MetricsLog(tmp_path, job_of(tmp_path, wandb="closed"), LogMark(), 0)
    assert "wandb login" in caught.value.details["remedy"]


class StandInMLflow(ModuleType):
    """The part of MLflow's client that is used, over one store that outlives it."""

    class MlflowException(Exception):  # noqa: N818
        pass

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.entities = SimpleNamespace()
        self.entities.Param = lambda key, value: (key, value)
        self.entities.Metric = lambda key, value, timestamp, step: (key, value, step)
        self.exceptions = SimpleNamespace(MlflowException=self.MlflowException)
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.is_lost = False

    def MlflowClient(self) -> StandInMLflow:  # noqa: N802
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        if name == "closed":
            raise self.MlflowException("no store\nmore")
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = f"id-{name}"
        return self.experiments[name]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        run = {
            "experiment": experiment,
            "tags": tags,
            "name": run_name,
            "status": "RUNNING",
            "params": {},
            "metrics": [],
        }
        self.runs[f"run-{len(self.runs)}"] = run
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run-{len(self.runs) - 1}"))

    def search_runs(self, experiments: list[str], query: str, max_results: int) -> list[Any]:
        name, value = re.fullmatch("tags.`(.*)` = '(.*)'", query).groups()  # type: ignore[union-attr]
        found = [
            key for key, run in self.runs.items() if run["experiment"] in experiments and run["tags"][name] == value
        ]
        return [SimpleNamespace(info=SimpleNamespace(run_id=key)) for key in found[:max_results]]

    def update_run(self, run: str, status: str) -> None:
        self.runs[run]["status"] = status

    def set_terminated(self, run: str) -> None:
        self.runs[run]["status"] = "FINISHED"

    def log_batch(self, run: str, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
        if self.is_lost:
            raise self.MlflowException("the server is gone")
        assert len(params) <= 100
        assert all(re.fullmatch(r"[/\w.\- :]*", name) for name, *_ in metrics), "names that the real one refuses"
        self.runs[run]["params"].update(params)
        self.runs[run]["metrics"] += metrics


def test_mlflow_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = StandInMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    job = job_of(tmp_path, mlflow="fusion")
    with MetricsLog(tmp_path, job, LogMark(), 0) as log:
        log.write("step", 1, loss=1.0)
        kept = log.mark()
        assert mlflow.runs["run-0"]["status"] == "RUNNING"
    with MetricsLog(tmp_path, job, kept, 1) as log:
        log.write("validation", 2, bits_per_byte=3.0, domains={"code & more": {"perplexity": 9}})
        assert mlflow.runs["run-0"]["status"] == "RUNNING"
    with MetricsLog(tmp_path, job_of(tmp_path, mlflow="other"), LogMark(), 0):
        pass
    run, other = mlflow.runs["run-0"], mlflow.runs["run-1"]
    assert run["metrics"] == [
        ("loss/total", 1.0, 1),
        ("validation/bits_per_byte", 3.0, 2),
        ("validation/domains/code _ more/perplexity", 9.0, 2),
    ]
    assert run["params"]["optimizer.learning_rate"] == str(job.optimizer.learning_rate)
    assert run["params"]["method.teacher"] == job.method.teacher
    assert (run["status"], run["experiment"], other["experiment"]) == ("FINISHED", "id-fusion", "id-other")
    with MetricsLog(tmp_path, job, LogMark(), 0) as log:
        mlflow.is_lost = True
        for step in (1, 2):
            log.write("step", step, loss=1.0)
    assert len(run["metrics"]) == 3
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 2, "the training and its log go on"
    assert capsys.readouterr().err == "MLflow is not told any more: the server is gone\n"
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        MetricsLog(tmp_path, job_of(tmp_path, mlflow="closed"), LogMark(), 0)
    assert "MLFLOW_TRACKING_URI" in caught.value.details["remedy"]


@pytest.mark.parametrize(
    ("package", "extra", "run"),
    [
        ("tensorboard", "logging", {"tensorboard": True}),
        ("wandb", "wandb", {"wandb": "p"}),
        ("mlflow", "mlflow", {"mlflow": "e"}),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str, run: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"package {package}") as caught:
        MetricsLog(tmp_path, job_of(tmp_path, **run), LogMark(), 0)
    assert caught.value.details["field"] == f"train.run.{package}"
    assert f"[{extra}]" in caught.value.details["remedy"]
