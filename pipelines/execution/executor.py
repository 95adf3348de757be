"""Executors: what places the work, and the one that places it in this process; `ray_executor` is the other.

An executor maps workers over jobs (a stage's number and a unit) and gives back (job, result) in any order. An
application error (a bug, a bad document) is a result like any other and is not retried; a lost process or machine is
retried elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Protocol

from fusionx.contract.stage import Stage
from fusionx.pipelines.config import ExecutorConfig
from fusionx.pipelines.execution.interruption import UNIT_THREAD
from fusionx.pipelines.execution.ray_executor import RayExecutor
from fusionx.pipelines.execution.worker_host import Job, JobOutcome, WorkerHost, attempt, load_worker

_ENDING_SECONDS = 5.0


class Executor(Protocol):
    def map(self, stages: Sequence[Stage], jobs: Iterable[Job]) -> Iterator[JobOutcome]:
        """The outcome of every job.

        The stages share one pool, sized as the first of them asks. A stage's output that is a local folder exists: by
        this a worker sees whether it shares the driver's filesystem.
        """

    def close(self) -> None: ...


def make_executor(config: ExecutorConfig) -> Executor:
    return InlineExecutor() if config.kind == "inline" else RayExecutor(config)


class InlineExecutor:
    """Runs the units in this process: one worker, in as many threads as it handles units at once."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def map(self, stages: Sequence[Stage], jobs: Iterable[Job]) -> Iterator[JobOutcome]:
        host = WorkerHost(lambda number: load_worker(stages[number]))
        todo: SimpleQueue[Job | None] = SimpleQueue()
        done: SimpleQueue[JobOutcome] = SimpleQueue()

        def work() -> None:
            while (job := todo.get()) is not None:
                with host.hold(job[0]) as worker:
                    done.put((job, attempt(worker, job[1])))

        places = stages[0].resources.concurrency
        # Daemons: who interrupts the run does not wait for a unit that takes minutes.
        self._threads = [threading.Thread(target=work, name=UNIT_THREAD, daemon=True) for _ in range(places)]
        for thread in self._threads:
            thread.start()
        under_way = 0
        try:
            for job in jobs:
                if under_way == places:
                    yield done.get()
                    under_way -= 1
                todo.put(job)
                under_way += 1
            for _ in range(under_way):
                yield done.get()
        finally:
            for _ in self._threads:
                todo.put(None)

    def close(self) -> None:
        """Gives units under way a moment; the command line leaves behind those that take longer (`cli.main`)."""
        deadline = time.monotonic() + _ENDING_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
