"""No stop signal is lost, and none reaches what must outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import pytest

from fusionx.train.distributed.stop_signals import STOP_SIGNALS, handled_by, held_back


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The numbers of those that have arrived."""
    numbers: list[int] = []
    with handled_by(lambda number, _: numbers.append(number)):
        yield numbers


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_one_that_comes_while_they_are_held_back_arrives_afterwards(number: int, heard: list[int]) -> None:
    with held_back():
        signal.raise_signal(number)  # to this thread, of which pytest may have several
        assert heard == []
    assert heard == [number]


def test_what_is_started_while_they_are_held_back_never_gets_any() -> None:
    with held_back():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for number in STOP_SIGNALS:
        child.send_signal(number)
    child.communicate(b"\n", timeout=60)
    assert child.returncode == 0


def test_the_tracker_that_multiprocessing_starts_never_gets_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """It outlives a signal to the whole group, as those whose semaphores it knows do."""
    tracker: Any = resource_tracker.ResourceTracker()
    monkeypatch.setattr(resource_tracker, "ensure_running", tracker.ensure_running)
    with held_back():
        pass
    for number in STOP_SIGNALS:
        os.kill(tracker._pid, number)
    pid, tracker._pid = tracker._pid, None
    os.close(tracker._fd)  # it ends when nobody has this pipe any more
    tracker._fd = None
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_who_listens_hears_them_although_they_were_blocked_and_leaves_them_so(heard: list[int]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        signal.raise_signal(signal.SIGTERM)
        inside: list[int] = []
        with handled_by(lambda number, _: inside.append(number)):
            assert inside == [signal.SIGTERM]
        assert set(STOP_SIGNALS) <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert heard == []
