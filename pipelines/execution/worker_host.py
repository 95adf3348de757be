"""What one process does with jobs: holds the worker of one stage at a time, and turns what goes wrong into outcomes.

Executors (`pipelines.execution.executor`, `pipelines.execution.ray_executor`) decide in which processes and threads
this happens.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fusionx.contract.errors import ConfigError, DataError, FusionXError
from fusionx.contract.files.storage import is_local, plain
from fusionx.contract.shards.parts import PartEntry
from fusionx.contract.stage import Occupancy, OverlappingWorker, Stage, Unit, Worker
from fusionx.pipelines.execution.job_queue import Dealt, Refusal

Job = tuple[int, Unit]
"""A unit, and the number of its stage in the list that an executor was given."""
JobOutcome = tuple[Job, PartEntry | FusionXError]

_UNMEASURED = Occupancy()


class Hands:
    """Of one process: how many units its threads have in hand, and have done."""

    def __init__(self) -> None:
        self._full = 0
        self._done = 0
        self._change = threading.Condition()

    @contextmanager
    def holding(self, take: Callable[[int, int], Dealt | Refusal]) -> Iterator[Dealt | Refusal]:
        """What `take` gives, told how many are in hand and done; after `NOT_YET`, what it gives once one is done."""
        with self._change:
            while (dealt := take(self._full, self._done)) is Refusal.NOT_YET:
                self._change.wait()
            self._full += 1
        try:
            yield dealt
        finally:
            with self._change:
                self._full -= 1
                self._done += isinstance(dealt, Dealt)
                self._change.notify_all()


class WorkerHost:
    """The workers of one process: of one stage at a time, for as many threads as share them."""

    def __init__(self, load: Callable[[int], Worker | FusionXError], patience: float = 0.0) -> None:
        """How workers are made, and how long the one that is there is kept for units that may still come.

        Args:
            load: makes the worker of a stage, given its number; an error stands for every unit of that stage.
            patience: seconds without any unit under way, after which another stage's worker may be loaded. Where units
                come in an order that is only nearly theirs, this spares loading two stages in turn.
        """
        self._load = load
        self._patience = patience
        self._change = threading.Condition()
        self._number = -1
        self._worker: Worker | FusionXError | None = None
        self._inside = 0
        self._alone = False

    @contextmanager
    def hold(self, number: int, alone: bool = False) -> Iterator[Worker | FusionXError]:
        """The worker of stage `number`, once no unit of another stage is under way; `alone`: nor any other at all."""
        with self._change:
            self._wait(number, alone)
            if number != self._number or self._worker is None:
                self._worker = None  # lets the last stage's model go before the next one is loaded
                self._worker = self._load(number)
                self._number = number
            self._alone = alone
            self._inside += 1
        try:
            yield self._worker
        finally:
            with self._change:
                self._inside -= 1
                self._change.notify_all()

    def _wait(self, number: int, alone: bool) -> None:
        def may_enter() -> bool:
            return self._inside == 0 or (number == self._number and not (alone or self._alone))

        while True:
            self._change.wait_for(may_enter)
            if number == self._number or self._worker is None:
                return
            if not self._change.wait_for(lambda: self._inside > 0, self._patience):
                return

    @property
    def units_needed(self) -> int:
        """How many in hand keep the worker busy."""
        worker = self._worker
        return worker.occupancy.units_needed if isinstance(worker, OverlappingWorker) else _UNMEASURED.units_needed


def load_worker(stage: Stage) -> Worker | FusionXError:
    """The stage's worker, or why there is none."""
    try:
        _refuse_unseen(stage.output)
        return stage.worker()
    except FusionXError as error:
        return error
    except Exception:
        return DataError(f"A worker of {stage.name} could not be loaded.", found="\n" + traceback.format_exc())


def _refuse_unseen(output: str) -> None:
    """Where the output is a folder of some other machine, parts made here would be nowhere that the driver sees."""
    if is_local(output) and not os.path.isdir(plain(output)):
        raise ConfigError(
            f"A worker on the machine '{os.uname().nodename}' does not see the run's output folder.",
            file=output,
            field="output",
            found=f"no folder {os.path.abspath(plain(output))} on that machine",
            expected="a folder that every machine of the cluster shares, or an object store (s3://, gs://)",
            remedy="set output to such a place; relative paths start where the command was started",
        )


def attempt(worker: Worker | FusionXError, unit: Unit) -> PartEntry | FusionXError:
    """The worker's result, or its error with the cause in it."""
    if isinstance(worker, FusionXError):
        return worker
    try:
        return worker(unit)
    except FusionXError as error:
        return error
    except Exception:
        return DataError("A worker failed.", found="\n" + traceback.format_exc())
