"""One process at a time in a folder: the next one is refused by name, or waits, which is said and has an end."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from fusionx.contract.errors import DataError
from fusionx.contract.files.lock import folder_lock


def test_the_second_is_refused_by_name_and_the_first_may_come_back(tmp_path: Path) -> None:
    error = pytest.raises(DataError, match="Another download is writing")
    with folder_lock(tmp_path), error as refused, folder_lock(tmp_path, "download"):
        pass
    assert f"process {os.getpid()} on" in refused.value.details["found"]
    with folder_lock(tmp_path):
        pass


def test_who_waits_says_so_once_and_gives_up_at_the_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    with folder_lock(tmp_path), pytest.raises(DataError, match="is writing"), folder_lock(tmp_path, wait=0.3):
        pass
    assert 0.3 <= time.monotonic() - started < 10
    said = capsys.readouterr().err
    assert said.count("Waiting up to 0 s for process") == 1
    assert str(tmp_path) in said


def test_who_waits_goes_on_when_the_other_has_ended(tmp_path: Path) -> None:
    held, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with folder_lock(tmp_path):
            held.set()
            ended.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    threading.Timer(0.2, ended.set).start()
    with folder_lock(tmp_path, wait=60):
        assert ended.is_set()
    other.join()
