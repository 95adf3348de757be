"""A signal that asks a training to stop sets a flag, on which the processes agree at their next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fusionx.train.distributed.stop_signals import handled_by


class StopRequest:
    """`asked`: whether a signal has come to this process."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        with handled_by(self._ask):
            yield

    def _ask(self, *_: object) -> None:
        self.asked = True
