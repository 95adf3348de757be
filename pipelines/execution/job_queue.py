"""What is to be done, and how often it was begun and lost: the driver's account of jobs that others repeat at will.

Plain asyncio; `pipelines.execution.ray_executor` makes it an actor.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Asker:
    """Who asks for a job, how many units it has in hand and has done, and how many at once keep it busy."""

    worker: str
    in_hand: int = 0
    done: int = 0
    needed: int = 2


@dataclass(frozen=True)
class Dealt:
    """A job for a ticket. lost: how often it was begun and lost."""

    number: int
    job: bytes
    lost: int


class Refusal(Enum):
    """Why there is no job for a ticket: all are in somebody's hands, or who asks is to end another unit first."""

    NONE_LEFT = "none left"
    NOT_YET = "not yet"


class JobQueue:
    """Jobs in their order, dealt to tickets; and attempts by name, those that were begun and have not ended.

    Ray hands out tickets, the numbers 0, 1, 2...; which job is behind one is decided when a worker asks, and stays so
    however often Ray repeats the ticket. So the next job goes to whoever is free, and what a slow worker was sent and
    has no hand for is left to others: there are as many tickets more than jobs as workers may keep waiting.

    Ray restarts lost workers and repeats their tasks without end. The queue sets the end, unit by unit, so that one
    unit that kills its worker each time is named while all others go on.
    """

    def __init__(self, retries: int, workers: int, at_once: int) -> None:
        """retries: of one unit. workers: in the pool. at_once: units that one of them takes in hand at once."""
        self._retries = retries
        self._workers = workers
        self._at_once = at_once
        self._jobs: list[bytes | None] = []
        self._taken: dict[int, int] = {}
        """The job behind a ticket."""
        self._paces = Paces(workers)
        self._is_complete = False
        self._open: Counter[str] = Counter()
        self._change = asyncio.Condition()

    async def add(self, job: bytes) -> None:
        """Jobs have the numbers 0, 1, 2..., as they come."""
        async with self._change:
            self._jobs.append(job)
            self._change.notify_all()

    async def close(self) -> None:
        async with self._change:
            self._is_complete = True
            self._change.notify_all()

    async def has(self, ticket: int) -> bool:
        """Whether there is such a ticket, once that is known."""
        async with self._change:
            await self._change.wait_for(lambda: ticket < len(self._jobs) or self._is_complete)
            return ticket < len(self._jobs) + self._workers * (self._at_once - 1)

    async def take(self, ticket: int, asker: Asker) -> Dealt | Refusal:
        """The ticket's job; `NOT_YET` is never said to who has none in hand."""
        left = len(self._jobs) - len(self._taken)
        self._paces.report(asker.worker, asker.done)
        if ticket not in self._taken and left:
            if self._is_complete and asker.in_hand >= self._allowed(asker, left):
                return Refusal.NOT_YET
            self._taken[ticket] = len(self._taken)
        number = self._taken.get(ticket)
        job = None if number is None else self._jobs[number]
        if number is None or job is None:
            return Refusal.NONE_LEFT
        return Dealt(number, job, self._open[unit_name(number)])

    def _allowed(self, asker: Asker, left: int) -> int:
        pace = self._paces.of(asker.worker)
        return units_at_once(self._at_once, left / self._workers, asker.needed, pace)

    async def forget(self, number: int) -> None:
        """Lets the job go, not its ticket: Ray may ask for that once more."""
        self._jobs[number] = None

    async def begin(self, name: str, at_once: bool) -> int | None:
        """None where the attempt may start, else how often it was begun and lost. `at_once`: every worker may try."""
        if self._open[name] >= self._retries + (self._workers if at_once else 1):
            return self._open[name]
        self._open[name] += 1
        return None

    async def end(self, name: str) -> None:
        """What ended well once is not at fault: what was lost before is forgiven."""
        self._open[name] = min(self._open[name] - 1, self._workers - 1)


class Paces:
    """How many units a worker has done per unit of the average worker's, since it is known."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._by_all = 0
        self._by: dict[Hashable, int] = {}
        self._before: dict[Hashable, int] = {}
        """By all, when a worker was first heard of."""

    def report(self, worker: Hashable, done: int) -> None:
        self._before.setdefault(worker, self._by_all)
        self._by_all += done - self._by.get(worker, 0)
        self._by[worker] = done

    def of(self, worker: Hashable) -> float:
        """1 as long as the average worker has not done a unit since."""
        average = (self._by_all - self._before[worker]) / self._workers
        return self._by[worker] / average if average >= 1 else 1.0


def unit_name(number: int) -> str:
    """Under which the attempts at a job's unit are counted."""
    return f"unit {number}"


def units_at_once(most: int, left: float, needed: int, pace: float) -> int:
    """How many units a worker is to have in hand: fewer to the end, which a slow one would hold up with many.

    most: it takes at once. left: units per worker that nobody has taken yet. needed: they keep it busy. pace: units
    that it has done per unit of the average worker's (`Paces`).
    """
    return min(most, max(1, round(min(1.0, pace) * max(needed, left / 2))))
