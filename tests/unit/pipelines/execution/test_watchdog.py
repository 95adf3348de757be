"""A process ends when a piece of its work is past its deadline, and never before."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

IN_TIME = """
import threading, time
from fusionx.pipelines.execution.watchdog import Watchdog
watchdog = Watchdog({seconds})
def work(seconds, times):
    for _ in range(times):
        with watchdog.watching():
            time.sleep(seconds)
threads = [threading.Thread(target=work, args=arguments) for arguments in ((0.3, 4), (0.01, 100), (0, 1000))]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
time.sleep(0.7)
"""

TOO_LONG = """
import ctypes, threading, time
from fusionx.pipelines.execution.watchdog import Watchdog
watchdog = Watchdog(0.5)
def others():
    while True:
        with watchdog.watching():
            time.sleep(0.01)
def stuck():
    with watchdog.watching():
        {hang}
threading.Thread(target=others, daemon=True).start()
time.sleep(0.2)
stuck()
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("seconds", [0.6, None])
def test_work_that_ends_in_time_is_left_alone_however_many_threads_do_it(seconds: float | None) -> None:
    """All together it takes twice the deadline."""
    ended = run(IN_TIME.format(seconds=seconds))
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("hang", ["time.sleep(50)", "ctypes.PyDLL(None).sleep(50)"])  # the second keeps Python's lock
def test_a_hanging_thread_ends_the_process_and_is_named(hang: str) -> None:
    begun = time.monotonic()
    ended = run(TOO_LONG.format(hang=hang))
    assert ended.returncode == 1
    assert time.monotonic() - begun < 30
    assert "Timeout" in ended.stderr
    assert "in stuck" in ended.stderr
