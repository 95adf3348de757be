"""Executors: where the workers of a stage run. The only file that imports ray.

An executor maps a stage's workers over units and gives back (unit, result) in any order. An application error (a bug,
a bad document) is a result like any other and is not retried; a lost process or machine is retried elsewhere.
"""

from __future__ import annotations

import logging
import os
import pickle
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from contract.errors import ConfigError, DataError, FusionXError, IncompleteError
from contract.shard import PartEntry
from contract.stage import Pool, Unit, Worker
from pipelines.config import ExecutorConfig

Outcome = tuple[Unit, PartEntry | FusionXError]

_LOADING = "loading"
_WAVE = 1024
"""Units handed out at once; bounds what the driver holds of a corpus that it streams."""


class Executor(Protocol):
    def map(self, stage: Pool, units: Iterable[Unit]) -> Iterator[Outcome]: ...

    def close(self) -> None: ...


def make_executor(config: ExecutorConfig) -> Executor:
    return InlineExecutor() if config.kind == "inline" else RayExecutor(config)


class InlineExecutor:
    """Runs every unit in this process, one after the other."""

    def map(self, stage: Pool, units: Iterable[Unit]) -> Iterator[Outcome]:
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
        self._attempts: Any = None

    def map(self, stage: Pool, units: Iterable[Unit]) -> Iterator[Outcome]:
        remaining = iter(units)
        while wave := {unit.index: unit for unit in islice(remaining, _WAVE)}:
            self._start()
            yield from self._map_wave(stage, wave)

    def _map_wave(self, stage: Pool, wave: dict[int, Unit]) -> Iterator[Outcome]:
        import ray

        needs = stage.resources
        self._refuse_impossible(stage)
        unfinished = dict(wave)
        rows = [{"unit": pickle.dumps(unit)} for unit in wave.values()]
        workers = min(needs.workers, len(rows))
        ray.get(self._attempts.reset.remote(workers))
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _StageActor,
            fn_constructor_args=(stage, self._attempts),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
            num_cpus=needs.num_cpus,
            num_gpus=needs.num_gpus or None,
        )
        try:
            for row in results.iter_rows():
                index, outcome = pickle.loads(row["outcome"])
                yield unfinished.pop(index), outcome
        except (ray.exceptions.RayError, RuntimeError) as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[-1]
            for unit in unfinished.values():
                yield unit, IncompleteError(f"Ray ended before this unit was done: {cause}")

    def _refuse_impossible(self, stage: Pool) -> None:
        """A local Ray would wait forever for a worker that needs more than the machine has; a cluster may grow."""
        import ray

        if self._config.address is not None:
            return
        there = ray.cluster_resources()
        for name, need in (("CPU", stage.resources.num_cpus), ("GPU", stage.resources.num_gpus)):
            if need > there.get(name, 0):
                raise ConfigError(
                    f"One worker of {stage.name} needs more than this machine's Ray has.",
                    field=f"num_{name.lower()}s (threads) of the stage",
                    found=f"{need:g} {name}",
                    expected=f"at most {there.get(name, 0):g}",
                    remedy="lower it, raise executor.num_cpus, or join a cluster with executor.address",
                )

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
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        if not ray.is_initialized():
            ray.init(**self._init_arguments())
        self._attempts = ray.remote(_Attempts).options(num_cpus=0).remote(self._config.retries)
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


class _Attempts:
    """Counts, in a Ray actor of its own, what was begun and never ended because its process died.

    Ray restarts lost workers and repeats their tasks without end. This counter sets the end, unit by unit, so that one
    unit that kills its worker each time is named while all others go on.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self.reset(1)

    def reset(self, workers: int) -> None:
        """Starts anew for a stage with so many workers."""
        self._workers = workers
        self._open: Counter[str] = Counter()

    def begin(self, name: str) -> int | None:
        """None where the attempt may start, else how often it was begun and lost."""
        at_once = self._workers if name == _LOADING else 1
        if self._open[name] >= at_once + self._retries:
            return self._open[name]
        self._open[name] += 1
        return None

    def end(self, name: str) -> None:
        self._open[name] -= 1


class _StageActor:
    """One replica: loads what the stage needs once, then makes parts."""

    def __init__(self, stage: Pool, attempts: Any) -> None:
        self._attempts = attempts
        self._worker: Worker | None = None
        self._failure = self._begin(_LOADING, f"The workers of {stage.name} were lost while loading")
        if self._failure is not None:
            return
        try:
            self._worker = stage.worker()
        except FusionXError as error:
            self._failure = error
        except Exception:
            self._failure = DataError("A worker could not be loaded.", found="\n" + traceback.format_exc())
        self._attempts.end.remote(_LOADING)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"outcome": [pickle.dumps(self._outcome(pickle.loads(packed))) for packed in batch["unit"]]}

    def _outcome(self, unit: Unit) -> tuple[int, PartEntry | FusionXError]:
        if self._worker is None:
            assert self._failure is not None
            return unit.index, self._failure
        name = f"unit {unit.index}"
        lost = self._begin(name, "The worker was lost while making this unit")
        if lost is not None:
            return unit.index, lost
        outcome = attempt(self._worker, unit)
        self._attempts.end.remote(name)
        return unit.index, outcome

    def _begin(self, name: str, problem: str) -> FusionXError | None:
        import ray

        lost = ray.get(self._attempts.begin.remote(name))
        if lost is None:
            return None
        return IncompleteError(
            f"{problem}, {lost} times.",
            found="a process that was killed, ran out of memory or crashed (Ray's log says which)",
            remedy="give workers more memory or fewer at once, then run the same command again",
        )
