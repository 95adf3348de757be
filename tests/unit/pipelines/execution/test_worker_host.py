"""What one process does with jobs: whose worker it holds, and how many units its threads have in hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from fusionx.contract.errors import DataError
from fusionx.pipelines.execution.worker_host import Hands, WorkerHost


def test_a_host_holds_the_worker_of_one_stage_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    mixed: list[list[int]] = []
    loaded: list[int] = []
    host = WorkerHost(lambda number: loaded.append(number) or DataError(str(number)))  # type: ignore[func-returns-value]
    jobs = iter([0] * 40 + [1] * 40)
    turn = threading.Lock()

    def work() -> None:
        while True:
            with turn:
                number = next(jobs, None)
            if number is None:
                return
            with host.hold(number):
                inside.append(number)
                held = list(inside)
                if len(set(held)) > 1:
                    mixed.append(held)
                inside.remove(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert mixed == []
    assert loaded == [0, 1]


def test_a_patient_host_waits_for_a_late_unit_before_it_loads_another_stage() -> None:
    """A unit of stage 1 overtakes the last one of stage 0."""
    loaded: list[int] = []
    host = WorkerHost(lambda number: loaded.append(number) or DataError(str(number)), patience=2)  # type: ignore[func-returns-value]

    def hold(number: int) -> None:
        with host.hold(number):
            pass

    hold(0)
    early = threading.Thread(target=hold, args=(1,))
    early.start()
    time.sleep(0.2)
    hold(0)
    early.join(20)
    hold(1)
    assert loaded == [0, 1]


def test_hands_that_are_too_many_are_not_filled_again() -> None:
    hands = Hands(3)
    made: list[int] = []
    leave = [threading.Event() for _ in range(5)]

    def work(number: int) -> None:
        with hands.free():
            made.append(number)
            leave[number].wait(20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for number in range(3):
        threads[number].start()
    wait_until(lambda: len(made) == 3)
    hands.keep(2)
    threads[3].start()
    leave[0].set()
    threads[0].join(20)
    assert made == [0, 1, 2], "two are still full"
    leave[1].set()
    wait_until(lambda: made == [0, 1, 2, 3])
    hands.keep(3)
    threads[4].start()
    wait_until(lambda: made == [0, 1, 2, 3, 4])
    for event in leave:
        event.set()
    for thread in threads:
        thread.join(20)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
