"""What one process does with jobs: whose worker it holds, and how many units its threads have in hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from told_clock import Clock

from fusionx.contract.errors import DataError
from fusionx.contract.shards.parts import PartEntry
from fusionx.contract.stage import Occupancy, Unit
from fusionx.pipelines.execution.job_queue import Dealt, Refusal
from fusionx.pipelines.execution.worker_host import Hands, WorkerHost, attempt


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


def test_a_thread_that_has_to_wait_asks_again_when_a_hand_is_empty() -> None:
    hands = Hands()
    asked: list[tuple[int, int]] = []
    begun: list[object] = []
    leave = [threading.Event() for _ in range(4)]

    def take(in_hand: int, done: int) -> Dealt | Refusal:
        asked.append((in_hand, done))
        if len(begun) == 3:
            return Refusal.NONE_LEFT
        return Refusal.NOT_YET if in_hand >= 2 else Dealt(len(begun), b"job", 0)

    def work(number: int) -> None:
        with hands.holding(take) as dealt:
            begun.append(dealt)
            leave[number].wait(20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for number in range(3):
        threads[number].start()
        wait_until(lambda number=number: len(asked) == number + 1)  # type: ignore[misc]
    assert len(begun) == 2, "two are in hand"
    leave[0].set()
    wait_until(lambda: len(begun) == 3)
    assert asked == [(0, 0), (1, 0), (2, 0), (1, 1)]
    threads[3].start()
    wait_until(lambda: begun[3:] == [Refusal.NONE_LEFT])
    for event in leave:
        event.set()
    for thread in threads:
        thread.join(20)


def test_a_host_says_how_many_units_keep_its_worker_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("fusionx.contract.stage.time", clock)

    class Measured:
        occupancy = Occupancy()

        def __call__(self, unit: Unit) -> PartEntry:
            with self.occupancy.unit():
                with self.occupancy.used():
                    clock.now += 2.0
                clock.now += 5.0
            return PartEntry(unit.part, unit.split, 1, 1, 1, "0" * 64)

    host = WorkerHost(lambda number: Measured())
    assert host.units_needed == 2, "nobody knows"
    with host.hold(0) as worker:
        attempt(worker, Unit(0, "train", {}, {}))  # type: ignore[arg-type]
    assert host.units_needed == 1 + 3


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
