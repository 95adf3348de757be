"""One measured figure, and the median over repetitions that every benchmark uses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Figure:
    """One line of a benchmark's output.

    `against` names the reference that was measured in the same run, `ratio` is value / reference; both None where
    there is nothing to compare with. `n` counts the repetitions whose median `value` is.
    """

    bench: str
    case: str
    metric: str
    value: float
    unit: str
    against: str | None = None
    ratio: float | None = None
    n: int = 1

    def to_json(self) -> dict[str, Any]:
        """Floats to nine significant digits: fixed decimals would make a small divergence or ratio zero."""
        return {
            key: float(f"{value:.9g}") if isinstance(value, float) else value for key, value in asdict(self).items()
        }

    def line(self) -> str:
        compared = "" if self.ratio is None else f"   {self.ratio:.3g} x {self.against}"
        return f"{self.case:<28} {self.metric:<28} {self.value:>14,.4g} {self.unit}{compared}"


def cpu_seconds(work: Callable[[], Result], n: int) -> tuple[float, Result]:
    """Median CPU seconds of this process over `n` rounds, which unlike wall time leave the neighbours out; a result."""
    seconds = []
    for _ in range(n):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), result


def interleaved_seconds(
    works: dict[str, Callable[[], object]], n: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each of `works` over `n` rounds; the works alternate, so that a slow minute hits them all."""
    for work in works.values():
        work()  # warm-up: caches, threads, compiled kernels
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(n):
        for name, work in works.items():
            started = clock()
            work()
            seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
