"""Ends a process in which a piece of work takes longer than it may, whatever it hangs in: whoever repeats what lost
workers had in hand then tries it elsewhere.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_LEAST = 1e-3
"""Seconds; faulthandler takes no timer of none."""


class Watchdog:
    """Of one process, for as many threads as work in it at once.

    The timer is faulthandler's, which needs no Python to run: a thread that never gives back the interpreter's lock is
    ended, too. Before that the traceback of every thread goes to standard error. What waits inside the kernel, for a
    disk that has gone, ends only when the kernel lets it.
    """

    def __init__(self, seconds: float | None) -> None:
        """seconds: for each piece of work; None: as long as it takes."""
        self._seconds = seconds
        self._lock = threading.Lock()
        self._deadlines: dict[object, float] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The process ends with exit code 1 unless the block is left in time."""
        if self._seconds is None:
            yield
            return
        work = object()
        with self._lock:
            self._deadlines[work] = time.monotonic() + self._seconds
            self._set_timer()
        try:
            yield
        finally:
            with self._lock:
                del self._deadlines[work]
                self._set_timer()

    def _set_timer(self) -> None:
        if not self._deadlines:
            faulthandler.cancel_dump_traceback_later()
            return
        left = min(self._deadlines.values()) - time.monotonic()
        faulthandler.dump_traceback_later(max(left, _LEAST), exit=True, file=_STDERR)
