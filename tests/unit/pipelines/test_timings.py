"""What a stage took, over the calls that it took."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from told_clock import Clock

import fusionx.pipelines.timings
from fusionx.contract.errors import DataError, IncompleteError, StoppedError
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.timings import read_timings, timed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fusionx.pipelines.timings, "time", clock)
    return clock


def call(layout: Layout, clock: Clock, seconds: float, error: BaseException | None = None, made: int = 0) -> None:
    raised = nullcontext() if error is None else pytest.raises(type(error))
    with raised, timed(layout, "eval", "eval") as numbers:
        clock.now += seconds
        if error is not None:
            raise error
        if made:
            numbers["made"] = made


def test_calls_that_broke_off_count_with_the_one_that_ends_the_work(tmp_path: Path, clock: Clock) -> None:
    layout = Layout(str(tmp_path))
    for seconds, error in [
        (1, IncompleteError("some failed")),
        (2, StoppedError("a signal")),
        (4, ValueError("a mistake of ours")),
        (8, KeyboardInterrupt()),
    ]:
        call(layout, clock, seconds, error)
    assert read_timings(layout) == {"eval": {"eval": {"seconds": 15, "unfinished_calls": 4}}}
    call(layout, clock, 16, made=3)
    assert read_timings(layout) == {"eval": {"eval": {"seconds": 31, "made": 3}}}
    call(layout, clock, 32, made=1)  # later work is another matter
    assert read_timings(layout) == {"eval": {"eval": {"seconds": 32, "made": 1}}}


def test_a_call_that_did_nothing_or_was_refused_leaves_no_trace(tmp_path: Path, clock: Clock) -> None:
    layout = Layout(str(tmp_path))
    call(layout, clock, 1)
    call(layout, clock, 1, DataError("made from something else"))
    assert not list(tmp_path.iterdir())


def test_what_broke_the_work_off_is_told_where_nothing_can_be_noted(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "timings.json").mkdir()
    call(Layout(str(tmp_path)), clock, 1, StoppedError("a signal"))
