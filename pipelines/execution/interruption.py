"""Signals that ask a command to stop: it ends where it is, and says that finished work is kept."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from fusionx.contract.errors import StoppedError
from fusionx.train.distributed.stop_signals import handled_by

UNIT_THREAD = "unit"
"""The name of threads of this process that compute units; such a one may outlast a command that was stopped."""


@contextmanager
def stopped_by_signals(kept: str) -> Iterator[None]:
    """Ends in an error with a remedy at a stop signal (in the main thread; elsewhere only for whoever interrupts it).

    Args:
        kept: what is on the disk for good, `finished parts`.

    Raises:
        StoppedError: a signal asked for it.
    """
    try:
        with handled_by(_interrupt):
            yield
    except KeyboardInterrupt as interrupt:
        raise StoppedError(
            f"The command was stopped by a signal; {kept} are kept.",
            found=str(interrupt) or "Ctrl-C",
            remedy="run the same command again: it goes on where it was",
        ) from None


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
