"""Precompute on many GPUs, simulated from the seconds that the steps of one unit were measured to take.

A worker per GPU has some units in its hands at once, fewer to the end (`pipelines.execution.job_queue`). Each is
dispatched by the one driver, prepared on a core of its host, computed while it has the GPU to itself, and finished
(encoded, compressed, written) on a core again. Hosts may be slow, and may be taken away: what was in their hands goes
to whoever asks next. What is not simulated: storage that is slower than the bytes asked of it.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fusionx.pipelines.execution.job_queue import Paces, units_at_once


@dataclass(frozen=True)
class UnitTimes:
    """Seconds of one unit on the driver, a core, a GPU and a core again; its tokens; the bytes it reads and writes."""

    dispatch: float
    prepare: float
    device: float
    finish: float
    tokens: float
    bytes: float

    @property
    def units_needed(self) -> int:
        """As a worker measures it (`contract.stage.Occupancy`)."""
        return 1 + max(1, math.ceil((self.prepare + self.finish) / self.device))


@dataclass(frozen=True)
class Cluster:
    """`cores` and `gpus` are of one host."""

    hosts: int
    gpus: int
    cores: int
    units_at_once: int


@dataclass(frozen=True)
class Trouble:
    """Of hosts. The share `slow` takes `slowness` times as long for each step. Each is lost `losses` times an hour, at
    random; another stands in its place, its models loaded, after `away` seconds."""

    slow: float = 0.0
    slowness: float = 1.0
    losses: float = 0.0
    away: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """Of a run.

    efficiency: share of the time that GPUs were there in which they computed units that counted. lost: units that were
    in the hands of hosts that were taken away. waiting: units that waited for the driver at once, at most.
    """

    efficiency: float
    tokens_per_s: float
    bytes_per_s: float
    lost: int = 0
    waiting: int = 0


class _Servers:
    """So many alike; who asks is served in turn."""

    def __init__(self, count: int, clock: _Clock) -> None:
        self._free, self._clock = count, clock
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self.most_waiting = 0

    def serve(self, seconds: float, then: Callable[[], None]) -> None:
        self._waiting.append((seconds, then))
        self._begin()
        self.most_waiting = max(self.most_waiting, len(self._waiting))

    def _begin(self) -> None:
        while self._free and self._waiting:
            seconds, then = self._waiting.popleft()
            self._free -= 1
            self._clock.after(seconds, partial(self._end, then))

    def _end(self, then: Callable[[], None]) -> None:
        self._free += 1
        then()
        self._begin()


class _Gpu(_Servers):
    """One, and how many units its worker has in hand and has done."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__(1, clock)
        self.in_hand, self.done = 0, 0


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, then))

    def run(self, is_over: Callable[[], bool]) -> float:
        while self._events and not is_over():
            self.now, _, then = heapq.heappop(self._events)
            then()
        return self.now


class _Run:
    """The queue of all units, the driver who deals them, and what was done."""

    def __init__(self, unit: UnitTimes, cluster: Cluster, units: int, trouble: Trouble) -> None:
        self.unit, self.cluster, self.trouble = unit, cluster, trouble
        self.clock = _Clock()
        self.driver = _Servers(1, self.clock)
        self.left = deque(range(units))
        self.workers = cluster.hosts * cluster.gpus
        self.paces = Paces(self.workers)
        self.to_do, self.lost, self.computed = units, 0, 0.0
        self.away, self.absent = 0.0, 0  # seconds of all hosts; how many are away now, whose time is not in it
        self.chance = random.Random(trouble.seed)


class _Host:
    """Some GPUs and cores. `_life` counts how often it was taken away: what an earlier life began does not count."""

    def __init__(self, run: _Run, slowness: float) -> None:
        self._run, self._slowness, self._life = run, slowness, 0
        self._come()

    def _come(self) -> None:
        run, life = self._run, self._life
        self._in_hand: set[int] = set()
        cores = _Servers(run.cluster.cores, run.clock)
        for _ in range(run.cluster.gpus):
            gpu = _Gpu(run.clock)
            for _ in range(run.cluster.units_at_once):
                self._next_unit(life, cores, gpu)
        if run.trouble.losses:
            run.clock.after(run.chance.expovariate(run.trouble.losses / 3600), self._go)

    def _go(self) -> None:
        run = self._run
        self._life += 1
        run.left.extendleft(self._in_hand)
        run.lost += len(self._in_hand)
        run.away -= run.clock.now
        run.absent += 1
        run.clock.after(run.trouble.away, self._return)

    def _return(self) -> None:
        self._run.away += self._run.clock.now
        self._run.absent -= 1
        self._come()

    def _next_unit(self, life: int, cores: _Servers, gpu: _Gpu) -> None:
        """One of the units in a worker's hands, and when it is done the next in its place."""
        run, unit, cluster = self._run, self._run.unit, self._run.cluster
        if life != self._life:
            return
        run.paces.report(gpu, gpu.done)
        left = len(run.left) / run.workers
        most = units_at_once(cluster.units_at_once, left, unit.units_needed, run.paces.of(gpu))
        if not run.left or gpu.in_hand >= most:
            run.clock.after(unit.device, partial(self._next_unit, life, cores, gpu)) if run.to_do else None
            return
        number = run.left.popleft()
        self._in_hand.add(number)
        gpu.in_hand += 1

        def done() -> None:
            if life == self._life:
                self._in_hand.remove(number)
                gpu.in_hand -= 1
                gpu.done += 1
                run.to_do -= 1
                run.computed += unit.device * self._slowness
                self._next_unit(life, cores, gpu)

        finish = lambda: cores.serve(unit.finish * self._slowness, done)  # noqa: E731
        compute = lambda: gpu.serve(unit.device * self._slowness, finish)  # noqa: E731
        run.driver.serve(unit.dispatch, lambda: cores.serve(unit.prepare * self._slowness, compute))


def simulate(unit: UnitTimes, cluster: Cluster, units: int, trouble: Trouble | None = None) -> Outcome:
    """Runs `units` equal units to the last one's end, start and end of the run included."""
    trouble = trouble or Trouble()
    run = _Run(unit, cluster, units, trouble)
    for number in range(cluster.hosts):
        _Host(run, trouble.slowness if number < trouble.slow * cluster.hosts else 1.0)
    seconds = run.clock.run(lambda: run.to_do == 0)
    there = cluster.gpus * ((cluster.hosts - run.absent) * seconds - run.away)
    rates = (units * unit.tokens / seconds, units * unit.bytes / seconds)
    return Outcome(run.computed / there, *rates, run.lost, run.driver.most_waiting)
