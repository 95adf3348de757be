"""What stages have in common: how many units in hand keep a worker busy."""

from __future__ import annotations

import threading

import pytest
from told_clock import Clock

from fusionx.contract import stage
from fusionx.contract.stage import Occupancy


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stage, "time", clock)
    return clock


def work(occupancy: Occupancy, clock: Clock, before: float, device: float, after: float) -> None:
    with occupancy.unit():
        clock.now += before
        with occupancy.used():
            clock.now += device
        clock.now += after


@pytest.mark.parametrize(
    ("before", "device", "after", "needed"),
    [(0.1, 10.0, 0.1, 2), (1.0, 2.0, 3.0, 3), (1.0, 2.0, 4.9, 4), (3.0, 1.0, 4.0, 8), (0.0, 1.0, 0.0, 2)],
)
def test_it_is_one_more_than_a_unit_takes_without_the_device(
    clock: Clock, before: float, device: float, after: float, needed: int
) -> None:
    occupancy = Occupancy()
    assert occupancy.units_needed == 2, "nobody knows"
    work(occupancy, clock, before, device, after)
    assert occupancy.units_needed == needed


def test_the_last_units_count_and_one_that_is_odd_does_not(clock: Clock) -> None:
    occupancy = Occupancy()
    work(occupancy, clock, 100.0, 1.0, 0.0)
    for _ in range(8):
        work(occupancy, clock, 0.5, 1.0, 1.5)
    work(occupancy, clock, 0.5, 30.0, 1.5)
    assert occupancy.units_needed == 3
    for _ in range(15):
        work(occupancy, clock, 0.0, 1.0, 0.5)
    assert occupancy.units_needed == 2


def test_waiting_for_another_unit_is_neither(clock: Clock) -> None:
    """The second unit asks a second after the first, which has the device for ten; it needs four of it."""
    occupancy = Occupancy()
    asked, free, done = threading.Event(), threading.Event(), threading.Event()

    def second() -> None:
        with occupancy.unit():
            with occupancy.used():
                asked.set()
                free.wait(20)
                clock.now += 4.0
            clock.now += 6.0
        done.set()

    with occupancy.unit():
        with occupancy.used():
            clock.now += 1.0
            threading.Thread(target=second).start()
            asked.wait(20)
            clock.now += 9.0
        free.set()
        done.wait(20)
    assert list(occupancy._without) == [6 / 4, 10 / 10]


def test_a_unit_that_failed_and_one_without_a_device_say_nothing(clock: Clock) -> None:
    occupancy = Occupancy()
    with pytest.raises(ZeroDivisionError), occupancy.unit(), occupancy.used():
        clock.now += 1 / 0
    with occupancy.unit():
        clock.now += 5.0
    assert not occupancy._without
