"""The executor `inline`, which looks at its own process whenever a part is done: does anything grow with the parts?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from fusionx.benchmarks.measuring.figure import Figure
from fusionx.benchmarks.measuring.memory import resident
from fusionx.contract.stage import Stage
from fusionx.pipelines.execution.executor import InlineExecutor
from fusionx.pipelines.execution.worker_host import Job, JobOutcome


class WatchedExecutor(InlineExecutor):
    """Of one stage: memory (MB), open files and CPU seconds so far, after each part."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[float] = []
        self.handles: list[int] = []
        self.seconds: list[float] = []

    def map(self, stages: Sequence[Stage], jobs: Iterable[Job]) -> Iterator[JobOutcome]:
        for outcome in super().map(stages, jobs):
            self.memory.append(resident("VmRSS"))
            self.handles.append(len(os.listdir("/proc/self/fd")))
            self.seconds.append(time.process_time())
            yield outcome

    def figures(self, bench: str, case: str, share: int, megabytes: float) -> Iterator[Figure]:
        """The peak, and the last of so many shares of the parts against the first; time from the end of the first part
        on, which loads what is needed. megabytes: of text, in parts of equal size.
        """
        parts = len(self.seconds)
        size, part = parts // share, megabytes / parts
        yield Figure(bench, case, "memory", max(self.memory), "MB", n=parts)
        if size < 2:
            return
        which = f"last of {share} shares"

        def compared(metric: str, unit: str, of: Callable[[int, int], float]) -> Figure:
            first, last = of(0, size), of(parts - size, parts)
            return Figure(bench, case, f"{metric}, {which}", last, unit, "the first", last / first, size)

        yield compared("memory", "MB", lambda start, stop: max(self.memory[start:stop]))
        yield compared("open files", "files", lambda start, stop: max(self.handles[start:stop]))
        yield compared(
            "time",
            "s of a core per MB",
            lambda start, stop: (self.seconds[stop - 1] - self.seconds[start]) / (stop - start - 1) / part,
        )
        seconds = (self.seconds[-1] - self.seconds[0]) / (part * (parts - 1))
        yield Figure(bench, case, "time", seconds, "s of a core per MB", n=parts - 1)
