"""A signal that asks a training to stop sets a flag, on which the processes agree at their next step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from fusionx.train.distributed.ranks import STOP_SIGNALS


class StopRequest:
    """`asked`: whether a signal has come to this process."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._ask) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True
