"""Crash points: every call by which a process makes something durable, counted and noted; at one of them it is killed.

Seen from outside: Python itself tells an audit hook of every file that is opened for writing and of every name that is
renamed, removed, linked or made, before it happens; only `os.fsync` has to be replaced. What libraries in other
languages write (the weights, the tokenizers) is not seen call by call, but all of it is flushed and renamed by us.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_UNWATCHED = ".lock"
"""Holds nothing that anybody reads back."""
_COUNTER = struct.Struct("q")


class Points:
    """The durable calls below `root`, of a process and of those forked from it.

    Args:
        root: the run's output. journal: the file of what happened, a JSON list per line: [call, path, ...].
        kept: a folder on the same filesystem, where files stay that were removed or replaced. kill_at: the call before
            which the whole process group is killed; 0: none.
    """

    def __init__(self, root: Path, journal: Path, kept: Path, kill_at: int = 0) -> None:
        self._root = f"{root}/"
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._kept = kept
        self._kill_at = kill_at
        self._shared = mmap.mmap(-1, _COUNTER.size)  # of all processes that are forked later
        self._lock = threading.Lock()
        self._inside = threading.local()

    @property
    def count(self) -> int:
        found: int = _COUNTER.unpack(self._shared[:])[0]
        return found

    def watch(self) -> None:
        """From now on, in this process and in those that it forks."""
        fsync = os.fsync

        def watched_fsync(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if not self._is_ours(path):
                fsync(descriptor)
                return
            with self._lock:
                self._point()
                fsync(descriptor)
                found = os.fstat(descriptor)
                self._note(
                    "names" if os.path.isdir(path) else "data", path, found.st_ino, found.st_size, found.st_mtime_ns
                )

        vars(os)["fsync"] = watched_fsync
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        act = _ACTS.get(event)
        if act is None or getattr(self._inside, "now", False):
            return
        self._inside.now = True
        try:
            act(self, *arguments)
        finally:
            self._inside.now = False

    def _is_ours(self, path: str) -> bool:
        return f"{path}/".startswith(self._root) and not path.endswith(_UNWATCHED)

    def _point(self) -> None:
        number = self.count + 1
        self._shared[:] = _COUNTER.pack(number)
        if number == self._kill_at:
            os.killpg(0, signal.SIGKILL)
            signal.pause()

    def _note(self, call: str, path: str, *more: Any) -> None:
        os.write(self._journal, (json.dumps([call, path, *more]) + "\n").encode())

    def _keep(self, path: str) -> str | None:
        """A second name for a file that loses this one."""
        if not os.path.isfile(path):
            return None
        kept = self._kept / f"{self.count}-{os.getpid()}"
        os.link(path, kept)
        return str(kept)

    def _open(self, path: Any, _: Any, flags: int) -> None:
        if isinstance(path, int) or not flags & _WRITES:
            return
        name = _full(path)
        if self._is_ours(name):
            with self._lock:
                self._point()
                if not os.path.exists(name):
                    self._note("create", name)

    def _rename(self, source: Any, target: Any, *_: int) -> None:
        names = _full(source), _full(target)
        if self._is_ours(names[1]):
            with self._lock:
                self._point()
                self._note("rename", names[1], names[0], self._keep(names[1]))

    def _remove(self, path: Any, folder: int = -1) -> None:
        name = _full(path, folder)
        if self._is_ours(name):
            with self._lock:
                self._point()
                self._note("remove", name, self._keep(name))

    def _rmdir(self, path: Any, folder: int = -1) -> None:
        name = _full(path, folder)
        if self._is_ours(name):
            with self._lock:
                self._point()
                self._note("rmdir", name)

    def _mkdir(self, path: Any, _: int, folder: int = -1) -> None:
        name = _full(path, folder)
        if self._is_ours(name) and not os.path.exists(name):
            with self._lock:
                self._point()
                self._note("mkdir", name)

    def _link(self, _: Any, target: Any, *__: int) -> None:
        name = _full(target)
        if self._is_ours(name):
            with self._lock:
                self._point()
                self._note("create", name)


_ACTS: dict[str, Callable[..., None]] = {
    "open": Points._open,
    "os.rename": Points._rename,
    "os.remove": Points._remove,
    "os.rmdir": Points._rmdir,
    "os.mkdir": Points._mkdir,
    "os.link": Points._link,
}


def _full(path: Any, folder: int = -1) -> str:
    """The absolute path; of names inside an open folder, too, as `shutil.rmtree` gives them."""
    name = os.fsdecode(path)
    base = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd()
    return os.path.normpath(os.path.join(base, name))
