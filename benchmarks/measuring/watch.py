"""A process that looks at itself between pieces of work: does anything grow with what it has done?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from fusionx.benchmarks.measuring.figure import Figure
from fusionx.benchmarks.measuring.memory import resident
from fusionx.contract.stage import Stage
from fusionx.pipelines.execution.executor import InlineExecutor
from fusionx.pipelines.execution.worker_host import Job, JobOutcome
from fusionx.train.config import TrainJob
from fusionx.train.data.collate import Batch
from fusionx.train.distributed.collectives import World
from fusionx.train.loop.trainer import Trainer


class Watch:
    """Memory (MB), open files and CPU seconds so far, after each piece of work."""

    def __init__(self) -> None:
        self.memory: list[float] = []
        self.handles: list[int] = []
        self.seconds: list[float] = []

    def look(self) -> None:
        self.memory.append(resident("VmRSS"))
        self.handles.append(len(os.listdir("/proc/self/fd")))
        self.seconds.append(time.process_time())

    def figures(self, bench: str, case: str, share: int, megabytes: float) -> Iterator[Figure]:
        """The peak, and the last of so many shares of the pieces against the first; time from the end of the first
        piece on, which loads what is needed. megabytes: of text, in pieces of equal size.
        """
        pieces = len(self.seconds)
        size, piece = pieces // share, megabytes / pieces
        yield Figure(bench, case, "memory", max(self.memory), "MB", n=pieces)
        if size < 2:
            return
        which = f"last of {share} shares"

        def compared(metric: str, unit: str, of: Callable[[int, int], float]) -> Figure:
            first, last = of(0, size), of(pieces - size, pieces)
            return Figure(bench, case, f"{metric}, {which}", last, unit, "the first", last / first, size)

        yield compared("memory", "MB", lambda start, stop: max(self.memory[start:stop]))
        yield compared("open files", "files", lambda start, stop: max(self.handles[start:stop]))
        yield compared(
            "time",
            "s of a core per MB",
            lambda start, stop: (self.seconds[stop - 1] - self.seconds[start]) / (stop - start - 1) / piece,
        )
        seconds = (self.seconds[-1] - self.seconds[0]) / (piece * (pieces - 1))
        yield Figure(bench, case, "time", seconds, "s of a core per MB", n=pieces - 1)


class WatchedExecutor(InlineExecutor):
    """The executor `inline`, which looks after each part."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watch()

    def map(self, stages: Sequence[Stage], jobs: Iterable[Job]) -> Iterator[JobOutcome]:
        for outcome in super().map(stages, jobs):
            self.watch.look()
            yield outcome


class WatchedTrainer(Trainer):
    """Looks after every `log_every` steps, checkpoints between them included."""

    def __init__(self, job: TrainJob, world: World) -> None:
        super().__init__(job, world)
        self.watch = Watch()

    def step(self, batches: list[Batch]) -> Any:
        super().step(batches)
        if self.state.step % self.job.run.log_every == 0:
            self.watch.look()
