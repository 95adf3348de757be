"""One process at a time in a folder, by a lock that ends with it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusionx.contract.errors import DataError
from fusionx.contract.files.storage import explained


@contextmanager
def folder_lock(folder: Path, work: str = "training", wait: bool = False) -> Iterator[None]:
    """Holds `folder` for some `work` while the context lasts. The lock ends with its process, however that ends.

    The file itself stays: deleted under another process that has just opened it, it would guard nothing.

    Args:
        wait: for a process that holds it, instead of refusing to be the second.

    Raises:
        DataError: another process holds it, or it cannot be written.
    """
    path = folder / ".lock"
    with explained(path, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise DataError(
                f"Another {work} is writing to this folder.",
                file=folder,
                found=file.read() or None,
                remedy="wait for it, or send that process SIGTERM: it saves and ends, and the same command goes on",
            ) from None
        except OSError:  # a filesystem without locks (Lustre mounted without `flock`) guards nothing
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
