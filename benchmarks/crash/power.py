"""A loss of power: what was not flushed is gone, as a filesystem may leave it that promises no more than POSIX does.

A file has the content that it had at its last fsync, or none. A name that was given or taken away since its folder's
last fsync may be as it was before; folder by folder, all such changes are undone or none. New folders stay: the common
filesystems put them on the disk with the first file that is flushed in them.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any


def lose_power(root: Path, journal: Path, rng: random.Random) -> None:
    """Takes from `root` what a loss of power may take, given what `Points` wrote down."""
    calls = [json.loads(line) for line in journal.read_text().splitlines()]
    _lose_data(root, {call[2]: call for call in calls if call[0] == "data"})
    _lose_names(calls, rng)


def _lose_data(root: Path, flushed: dict[int, list[Any]]) -> None:
    for parent, _, names in os.walk(root):
        for name in names:
            path = Path(parent, name)
            found = path.stat()
            _, _, _, size, changed = flushed.get(found.st_ino, [None] * 3 + [0, -1])
            if found.st_mtime_ns != changed:
                os.truncate(path, min(size, found.st_size))


def _lose_names(calls: list[list[Any]], rng: random.Random) -> None:
    flushed = {call[1]: number for number, call in enumerate(calls) if call[0] == "names"}
    undone: dict[str, bool] = {}
    for number, call in reversed(list(enumerate(calls))):
        folder = os.path.dirname(call[1])
        if number > flushed.get(folder, -1) and undone.setdefault(folder, rng.random() < 0.5) and os.path.isdir(folder):
            _undo(*call)


def _undo(call: str, path: str, *more: Any) -> None:
    if call == "create" and os.path.isfile(path):
        os.unlink(path)
    elif call == "rename":
        source, replaced = more
        if os.path.exists(path) and not os.path.exists(source):
            os.rename(path, source)
        _bring_back(replaced, path)
    elif call == "remove":
        _bring_back(more[0], path)
    elif call == "rmdir":
        os.makedirs(path, exist_ok=True)


def _bring_back(kept: str | None, path: str) -> None:
    if kept is not None and not os.path.exists(path):
        os.link(kept, path)
