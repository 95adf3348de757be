"""What is to be done, and how often it was begun and lost: the driver's account of jobs that others repeat at will.

Plain asyncio; `pipelines.execution.ray_executor` makes it an actor.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress


class JobQueue:
    """Jobs by ticket, the numbers 0, 1, 2...; and attempts by name, those that were begun and have not ended.

    Ray restarts lost workers and repeats their tasks without end. The queue sets the end, unit by unit, so that one
    unit that kills its worker each time is named while all others go on.
    """

    def __init__(self, retries: int, workers: int) -> None:
        self._retries = retries
        self._workers = workers
        self._jobs: dict[int, bytes | None] = {}
        self._waiting: set[int] = set()
        """Tickets that no worker has taken yet."""
        self._is_complete = False
        self._open: Counter[str] = Counter()
        self._change = asyncio.Condition()

    async def add(self, ticket: int, job: bytes) -> None:
        async with self._change:
            self._jobs[ticket] = job
            self._waiting.add(ticket)
            self._change.notify_all()

    async def close(self) -> None:
        async with self._change:
            self._is_complete = True
            self._change.notify_all()

    async def has(self, ticket: int) -> bool:
        """Whether there is such a ticket, once that is known."""
        async with self._change:
            await self._change.wait_for(lambda: ticket in self._jobs or self._is_complete)
            return ticket in self._jobs

    async def take(self, ticket: int) -> tuple[bytes | None, int]:
        """The job, and how often it was begun and lost; no job where its outcome has long been delivered."""
        async with self._change:
            self._waiting.discard(ticket)
            self._change.notify_all()
        return self._jobs[ticket], self._open[unit_name(ticket)]

    async def earlier_are_taken(self, ticket: int, seconds: float) -> None:
        """Returns once every job before this one is in some worker's hands, or after that time.

        A job that Ray has sent may reach its worker later than the jobs after it. Where its worker was lost on the
        way, Ray sends it again, perhaps to a worker that waits here for it: hence the end.
        """
        async with self._change:
            with suppress(TimeoutError):
                taken = self._change.wait_for(lambda: min(self._waiting, default=ticket) >= ticket)
                await asyncio.wait_for(taken, seconds)

    async def forget(self, ticket: int) -> None:
        """Lets the job go, not its ticket: Ray may ask for that once more."""
        self._jobs[ticket] = None

    async def begin(self, name: str, at_once: bool) -> int | None:
        """None where the attempt may start, else how often it was begun and lost. `at_once`: every worker may try."""
        if self._open[name] >= self._retries + (self._workers if at_once else 1):
            return self._open[name]
        self._open[name] += 1
        return None

    async def end(self, name: str) -> None:
        """What ended well once is not at fault: what was lost before is forgiven."""
        self._open[name] = min(self._open[name] - 1, self._workers - 1)


def unit_name(ticket: int) -> str:
    """Under which the attempts at a ticket's unit are counted."""
    return f"unit {ticket}"
