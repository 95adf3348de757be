"""What is to be done, and how often it was begun and lost: the driver's account of jobs that others repeat at will.

Plain asyncio; `pipelines.execution.ray_executor` makes it an actor.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

_ENOUGH = 2
"""Units that keep a worker busy: one is computed while another's text is prepared or its part is written."""


@dataclass(frozen=True)
class Dealt:
    """A job for a ticket. lost: how often it was begun and lost. at_once: how many a worker is to have in hand now."""

    number: int
    job: bytes
    lost: int
    at_once: int


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
            return ticket < len(self._jobs) + self._workers * max(0, self._at_once - _ENOUGH)

    async def take(self, ticket: int) -> Dealt | None:
        """The ticket's job; none where all are in somebody's hands, or where its outcome has long been delivered."""
        if ticket not in self._taken and len(self._taken) < len(self._jobs):
            self._taken[ticket] = len(self._taken)
        if ticket not in self._taken:
            return None
        number = self._taken[ticket]
        job = self._jobs[number]
        if job is None:
            return None
        left = len(self._jobs) - len(self._taken) if self._is_complete else None
        return Dealt(number, job, self._open[unit_name(number)], units_at_once(self._at_once, left, self._workers))

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


def unit_name(number: int) -> str:
    """Under which the attempts at a job's unit are counted."""
    return f"unit {number}"


def units_at_once(most: int, left: int | None, workers: int) -> int:
    """How many units a worker is to have in hand: fewer to the end, which a slow one would hold up with many.

    most: it takes at once. left: units that nobody has taken yet; None where more may come.
    """
    return most if left is None else min(most, max(_ENOUGH, left // (2 * workers)))
