"""Executors: where the workers of a stage run. The only file that imports ray.

An executor maps a stage's workers over units and gives back (unit, result) in any order. An application error (a bug,
a bad document) is a result like any other and is not retried; a lost process or machine is retried elsewhere.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from contract.errors import ConfigError, DataError, FusionXError, IncompleteError
from contract.shard import PartEntry
from contract.stage import Stage, Unit, Worker
from pipelines.config import ExecutorConfig

Outcome = tuple[Unit, PartEntry | FusionXError]

_WAVE = 1024
"""Units handed out at once; bounds what the driver holds of a corpus that it streams."""


class Executor(Protocol):
    def map(self, stage: Stage, units: Iterable[Unit]) -> Iterator[Outcome]: ...

    def close(self) -> None: ...


def make_executor(config: ExecutorConfig) -> Executor:
    return InlineExecutor() if config.kind == "inline" else RayExecutor(config)


class InlineExecutor:
    """Runs every unit in this process, one after the other."""

    def map(self, stage: Stage, units: Iterable[Unit]) -> Iterator[Outcome]:
        worker: Worker | None = None
        for unit in units:
            if worker is None:
                worker = stage.worker()
            yield unit, attempt(worker, unit)

    def close(self) -> None:
        pass


def attempt(worker: Worker, unit: Unit) -> PartEntry | FusionXError:
    """The worker's result, or its error with the cause in it."""
    try:
        return worker(unit)
    except FusionXError as error:
        return error
    except Exception:
        return DataError("A worker failed.", found="\n" + traceback.format_exc())


class RayExecutor:
    """Ray Data's actor pool over unit descriptors: dynamic hand-out, back-pressure and retries are Ray's."""

    def __init__(self, config: ExecutorConfig) -> None:
        self._config = config
        self._started = False

    def map(self, stage: Stage, units: Iterable[Unit]) -> Iterator[Outcome]:
        remaining = iter(units)
        while wave := {unit.index: unit for unit in islice(remaining, _WAVE)}:
            self._start()
            yield from self._map_wave(stage, wave)

    def _map_wave(self, stage: Stage, wave: dict[int, Unit]) -> Iterator[Outcome]:
        import ray

        needs = stage.resources
        unfinished = dict(wave)
        rows = [{"unit": pickle.dumps(unit)} for unit in wave.values()]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _StageActor,
            fn_constructor_args=(stage,),
            batch_size=1,
            concurrency=(1, min(needs.workers, len(rows))),
            num_cpus=needs.num_cpus,
            num_gpus=needs.num_gpus or None,
            max_restarts=self._config.retries,
            max_task_retries=self._config.retries,
        )
        try:
            for row in results.iter_rows():
                index, outcome = pickle.loads(row["outcome"])
                yield unfinished.pop(index), outcome
        except (ray.exceptions.RayError, RuntimeError) as error:
            cause = str(error).strip().splitlines()[-1]
            for unit in unfinished.values():
                yield unit, IncompleteError(f"The workers were lost {self._config.retries + 1} times: {cause}")

    def _start(self) -> None:
        if self._started:
            return
        try:
            import ray
            import ray.data
        except ImportError:
            raise ConfigError(
                "The executor 'ray' needs the package ray[data].",
                field="executor.kind",
                found="ray",
                expected="an installed ray, or 'inline'",
                remedy="pip install 'ray[data]', or --set executor.kind=inline",
            ) from None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if not ray.is_initialized():
            ray.init(**self._init_arguments())
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        self._started = True

    def _init_arguments(self) -> dict[str, Any]:
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": True}
        if self._config.address is not None:
            root = Path(__file__).resolve().parent.parent
            excludes = [".venv", ".git", "data", "runs", "tests"]
            shipped = {"working_dir": str(root), "excludes": excludes}
            return {**quiet, "address": self._config.address, "runtime_env": shipped}
        return {
            **quiet,
            "num_cpus": self._config.num_cpus,
            "object_store_memory": self._config.object_store_mb << 20,
            "include_dashboard": False,
        }

    def close(self) -> None:
        if self._started:
            import ray

            ray.shutdown()
            self._started = False


class _StageActor:
    """One replica: loads what the stage needs once, then makes parts."""

    def __init__(self, stage: Stage) -> None:
        self._worker: Worker | FusionXError
        try:
            self._worker = stage.worker()
        except FusionXError as error:
            self._worker = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        outcomes = []
        for packed in batch["unit"]:
            unit = pickle.loads(packed)
            outcome = self._worker if isinstance(self._worker, FusionXError) else attempt(self._worker, unit)
            outcomes.append(pickle.dumps((unit.index, outcome)))
        return {"outcome": outcomes}
