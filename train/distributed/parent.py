"""A process that ends when the one that started it is killed: nothing runs on that nobody waits for."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

END_WITH_PARENT = "--end-with-parent"
_PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""


def end_with_parent(parent: int = 0) -> None:
    """Asks the system for a stop signal at the parent's death (Linux only).

    Args:
        parent: its process id, where it may have died before this could be asked for.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
