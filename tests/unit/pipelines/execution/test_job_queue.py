"""The account of jobs: who asks gets the next one, fewer at once to the end, and no unit is tried for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fusionx.pipelines.execution.job_queue import Asker, Dealt, JobQueue, Paces, Refusal, unit_name, units_at_once

IDLE = Asker("idle")


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
        queue = JobQueue(retries=1, workers=1, at_once=1)
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
        assert [await queue.has(ticket) for ticket in range(23)] == [True] * (5 + 3 * 5) + [False] * 3
        taken = [await queue.take(ticket, IDLE) for ticket in range(5 + 3 * 5)]
        assert [dealt.number for dealt in taken if isinstance(dealt, Dealt)] == list(range(5)), "each once"

    account(of)


def test_who_asks_gets_the_next_job_and_keeps_it() -> None:
    async def of() -> None:
        queue = await filled(JobQueue(retries=1, workers=1, at_once=2), 2)
        await queue.begin(unit_name(0), at_once=False)
        for _ in range(2):  # Ray's worker was lost, and another one has the ticket
            assert await queue.take(1, IDLE) == Dealt(0, b"job 0", 1)
        assert await queue.take(0, IDLE) == Dealt(1, b"job 1", 0)
        await queue.forget(0)
        assert await queue.has(1), "Ray may count the tickets once more"
        assert await queue.take(1, IDLE) is Refusal.NONE_LEFT, "its outcome is delivered"
        assert await queue.take(2, IDLE) is Refusal.NONE_LEFT

    account(of)


def test_workers_have_fewer_in_hand_to_the_end() -> None:
    async def of() -> None:
        queue = JobQueue(retries=1, workers=2, at_once=6)
        for number in range(40):
            await queue.add(b"job")
            if number == 20:
                full = [await queue.take(ticket, Asker("a", in_hand=6)) for ticket in range(2)]
                assert [type(dealt) for dealt in full] == [Dealt, Dealt], "nobody knows yet that the end is near"
        await queue.close()
        allowed = []
        for ticket in range(2, 40):
            worker = "ba"[ticket % 2]  # alike fast
            answers = [await queue.take(ticket, Asker(worker, in_hand)) for in_hand in range(6, -1, -1)]
            allowed.append(answers.count(Refusal.NOT_YET) * -1 + 7)
        assert allowed == [min(6, max(2, round(left / 4))) for left in range(38, 0, -1)]

    account(of)


def test_who_is_slower_gets_fewer_to_the_end() -> None:
    async def of() -> None:
        queue = await filled(JobQueue(retries=1, workers=2, at_once=6), 36)
        for ticket in range(30):
            worker = Asker("slow", done=ticket // 10) if ticket % 10 == 0 else Asker("fast", done=ticket)
            assert isinstance(await queue.take(ticket, worker), Dealt)
        assert isinstance(await queue.take(30, Asker("new", in_hand=1)), Dealt), "nobody knows how fast it is"
        assert await queue.take(31, Asker("slow", in_hand=1, done=3, needed=4)) is Refusal.NOT_YET
        assert await queue.take(31, Asker("fast", in_hand=3, done=27, needed=4)) == Dealt(31, b"job 31", 0)
        assert await queue.take(31, Asker("slow", in_hand=1, done=3)) == Dealt(31, b"job 31", 0), "Ray repeats it"

    account(of)


def test_a_pace_counts_from_when_a_worker_is_known() -> None:
    paces = Paces(workers=2)
    for done in range(9):
        paces.report("a", done)
    paces.report("b", 0)
    assert paces.of("a") == pytest.approx(2.0)
    assert paces.of("b") == 1.0, "of it nothing is known"
    paces.report("a", 11)
    paces.report("b", 1)
    assert paces.of("b") == pytest.approx(1 / (4 / 2))
    assert paces.of("a") == pytest.approx(11 / (12 / 2))


@pytest.mark.parametrize(
    ("left", "needed", "pace", "expected"),
    [
        (20.0, 2, 1.0, 6),
        (8.0, 2, 1.0, 4),
        (0.1, 2, 1.0, 2),
        (0.1, 4, 1.3, 4),
        (0.1, 4, 0.5, 2),
        (0.1, 2, 0.3, 1),
        (20.0, 9, 1.0, 6),
    ],
)
def test_the_pace_scales_what_a_worker_is_to_have_in_hand(left: float, needed: int, pace: float, expected: int) -> None:
    assert units_at_once(6, left, needed, pace) == expected
