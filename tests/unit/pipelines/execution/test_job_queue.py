"""The account of jobs: who asks gets the next one, fewer at once to the end, and no unit is tried for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fusionx.pipelines.execution.job_queue import Dealt, JobQueue, unit_name


def account(of: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(of())


async def filled(queue: JobQueue, count: int) -> JobQueue:
    for number in range(count):
        await queue.add(b"job %d" % number)
    await queue.close()
    return queue


def test_it_sets_an_end_to_repeats_and_forgives_what_ended_well() -> None:
    async def of() -> None:
        queue = JobQueue(retries=1, workers=2, at_once=1)
        unit = unit_name(0)
        assert [await queue.begin(unit, at_once=False) for _ in range(3)] == [None, None, 2]
        assert await queue.begin(unit_name(1), at_once=False) is None, "one unit's losses are no other's"
        assert [await queue.begin("loading 0", at_once=True) for _ in range(4)] == [None, None, None, 3]
        await queue.end("loading 0")
        assert await queue.begin("loading 0", at_once=True) is None, "a worker that loads shows that it can be done"

    account(of)


def test_it_knows_a_ticket_once_its_job_is_there_or_no_more_come() -> None:
    async def of() -> None:
        queue = JobQueue(retries=1, workers=1, at_once=2)
        asked = [asyncio.create_task(queue.has(ticket)) for ticket in range(2)]
        await queue.add(b"job")
        await asked[0]
        assert not asked[1].done()
        await queue.close()
        assert await asyncio.gather(*asked) == [True, False]

    account(of)


def test_there_are_as_many_tickets_more_as_workers_may_keep_waiting() -> None:
    async def of() -> None:
        queue = await filled(JobQueue(retries=1, workers=3, at_once=6), 5)
        assert [await queue.has(ticket) for ticket in range(20)] == [True] * (5 + 3 * 4) + [False] * 3
        taken = [await queue.take(ticket) for ticket in range(5 + 3 * 4)]
        assert [dealt.number for dealt in taken if dealt] == list(range(5)), "each once"

    account(of)


def test_who_asks_gets_the_next_job_and_keeps_it() -> None:
    async def of() -> None:
        queue = await filled(JobQueue(retries=1, workers=1, at_once=2), 2)
        await queue.begin(unit_name(0), at_once=False)
        for _ in range(2):  # Ray's worker was lost, and another one has the ticket
            assert await queue.take(1) == Dealt(0, b"job 0", 1, 2)
        assert await queue.take(0) == Dealt(1, b"job 1", 0, 2)
        await queue.forget(0)
        assert await queue.has(1), "Ray may count the tickets once more"
        assert await queue.take(1) is None, "its outcome is delivered"
        assert await queue.take(2) is None

    account(of)


def test_workers_have_fewer_in_hand_to_the_end_and_no_less_than_two() -> None:
    async def of() -> None:
        queue = JobQueue(retries=1, workers=2, at_once=6)
        for number in range(40):
            await queue.add(b"job")
            if number == 20:
                dealt = await queue.take(0)
                assert dealt is not None
                assert dealt.at_once == 6, "nobody knows yet that the end is near"
        await queue.close()
        allowed = [dealt.at_once for ticket in range(1, 40) if (dealt := await queue.take(ticket))]
        assert allowed == [min(6, max(2, left // 4)) for left in range(38, -1, -1)]

    account(of)
