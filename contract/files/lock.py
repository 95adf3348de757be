"""One process at a time in a folder, by a lock that ends with it."""

from __future__ import annotations

import fcntl
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fusionx.contract.errors import DataError
from fusionx.contract.files.storage import explained

SAVING_SECONDS = 300.0
"""How long a training may take to save and end after its command was killed: so long the next call waits for it."""
_PAUSE = 0.1


@contextmanager
def folder_lock(folder: Path, work: str = "training", wait: float = 0.0) -> Iterator[None]:
    """Holds `folder` for some `work` while the context lasts. The lock ends with its process, however that ends.

    The file itself stays: deleted under another process that has just opened it, it would guard nothing.

    Args:
        wait: seconds to wait for a process that holds it, which is said, before refusing to be the second.

    Raises:
        DataError: another process holds it, or it cannot be written.
    """
    path = folder / ".lock"
    with explained(path, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        _take(file, folder, work, wait)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _take(file: TextIO, folder: Path, work: str, wait: float) -> None:
    started = time.monotonic()
    said = False
    while not _is_free(file):
        file.seek(0)
        holder = file.read() or None
        if time.monotonic() - started >= wait:
            raise DataError(
                f"Another {work} is writing to this folder.",
                file=folder,
                found=holder,
                remedy="wait for it, or send that process SIGTERM: it saves and ends, and the same command goes on",
            )
        if not said:
            bound = f" up to {wait:.0f} s" if wait < math.inf else ""
            print(f"Waiting{bound} for {holder or work}, which is writing to {folder}", file=sys.stderr, flush=True)
            said = True
        time.sleep(_PAUSE)


def _is_free(file: TextIO) -> bool:
    """Whether the lock is held by this process now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a filesystem without locks (Lustre mounted without `flock`) guards nothing
        pass
    return True
