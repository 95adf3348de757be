"""Precompute on many GPUs, simulated from the seconds that the steps of one unit were measured to take.

A worker per GPU has some units in its hands at once. Each is dispatched by the one driver, prepared on a core of its
host, computed while it has the GPU to itself, and finished (encoded, compressed, written) on a core again. What is not
simulated: storage that is slower than the bytes asked of it, and hosts that differ.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class UnitTimes:
    """Seconds of one unit on the driver, a core, a GPU and a core again; its tokens; the bytes it reads and writes."""

    dispatch: float
    prepare: float
    device: float
    finish: float
    tokens: float
    bytes: float


@dataclass(frozen=True)
class Cluster:
    """`cores` and `gpus` are of one host."""

    hosts: int
    gpus: int
    cores: int
    units_at_once: int


@dataclass(frozen=True)
class Outcome:
    """`efficiency`: of the tokens per second that the GPUs would compute were they never idle."""

    efficiency: float
    tokens_per_s: float
    bytes_per_s: float


class _Servers:
    """So many alike; who asks is served in turn."""

    def __init__(self, count: int, clock: _Clock) -> None:
        self._free, self._clock = count, clock
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()

    def serve(self, seconds: float, then: Callable[[], None]) -> None:
        self._waiting.append((seconds, then))
        self._begin()

    def _begin(self) -> None:
        while self._free and self._waiting:
            seconds, then = self._waiting.popleft()
            self._free -= 1
            self._clock.after(seconds, partial(self._end, then))

    def _end(self, then: Callable[[], None]) -> None:
        self._free += 1
        then()
        self._begin()


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, then))

    def run(self) -> float:
        while self._events:
            self.now, _, then = heapq.heappop(self._events)
            then()
        return self.now


def simulate(unit: UnitTimes, cluster: Cluster, units: int) -> Outcome:
    """Runs `units` equal units to the last one's end, start and end of the run included."""
    clock = _Clock()
    driver = _Servers(1, clock)
    left = iter(range(units))
    for _ in range(cluster.hosts):
        cores = _Servers(cluster.cores, clock)
        for _ in range(cluster.gpus):
            gpu = _Servers(1, clock)
            for _ in range(cluster.units_at_once):
                _next_unit(unit, left, driver, cores, gpu)
    seconds = clock.run()
    gpus = cluster.hosts * cluster.gpus
    return Outcome(units * unit.device / (gpus * seconds), units * unit.tokens / seconds, units * unit.bytes / seconds)


def _next_unit(unit: UnitTimes, left: Iterator[int], driver: _Servers, cores: _Servers, gpu: _Servers) -> None:
    """One of the units in a worker's hands, and when it is done the next in its place."""
    if next(left, None) is None:
        return
    again = lambda: _next_unit(unit, left, driver, cores, gpu)  # noqa: E731
    finish = lambda: cores.serve(unit.finish, again)  # noqa: E731
    compute = lambda: gpu.serve(unit.device, finish)  # noqa: E731
    driver.serve(unit.dispatch, lambda: cores.serve(unit.prepare, compute))
