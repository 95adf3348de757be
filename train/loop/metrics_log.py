"""What a training writes down as it goes: log.jsonl, which reports and resumed runs read.

Dashboards, where they are asked for, show the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fusionx.contract.errors import DamageError
from fusionx.contract.files.storage import explained
from fusionx.train.config import TrainJob
from fusionx.train.loop.dashboards import Dashboard, dashboards_of

_LOSSES = ("lm", "fuse", "feed", "select")
_SELECTION = ("weight", "selected", "gate_entropy")


class LogMark(NamedTuple):
    """How much of log.jsonl a checkpoint belongs to: its first `bytes` and their SHA-256."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class MetricsLog:
    """The records of one job. Only one process writes them: for the others `write` does nothing.

    Args:
        folder: the job's output. kept, step: those of the checkpoint that the run goes on from, nothing for a new run;
            what was logged after them is dropped.
        is_main: whether this process is the one that writes.

    Raises:
        DamageError: log.jsonl does not begin with what is to be kept.
        ConfigError: a dashboard is asked for that cannot be used.
    """

    def __init__(self, folder: Path, job: TrainJob, kept: LogMark, step: int, is_main: bool = True) -> None:
        self._file = folder / "log.jsonl"
        self._is_main = is_main
        self._dashboards: list[Dashboard] = []
        if not is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _truncate(self._file, kept)
        self._dashboards = dashboards_of(folder, job, step + 1 if kept.bytes else 0)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        for dashboard in self._dashboards:
            dashboard.close()

    def write(self, event: str, step: int, **values: Any) -> None:
        """One line: {"event": event, "step": step, ...}; values may be nested."""
        if not self._is_main:
            return
        record = {"event": event, "step": step, **values}
        with explained(self._file, "written"), self._file.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        for dashboard in self._dashboards:
            dashboard.show(scalars(record), step)

    def mark(self) -> LogMark:
        """Of log.jsonl as it stands, all of which is on the disk: what a checkpoint keeps."""
        if not self._is_main:
            return LogMark()
        with explained(self._file, "written"), self._file.open("rb") as stream:
            os.fsync(stream.fileno())
            return LogMark(os.fstat(stream.fileno()).st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """A record's numbers by the names that dashboards group: loss/lm, selection/weight/<source>, validation/..."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if key not in ("event", "step"):
            found.update(_flatten(_group(record["event"], key), value))
    return found


def _group(event: str, key: str) -> str:
    if event != "step":
        return f"{event}/{key}"
    if key == "loss":
        return "loss/total"
    group = "loss" if key in _LOSSES else "selection" if key in _SELECTION else "train"
    return f"{group}/{key}"


def _flatten(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(f"{name}/{key}", item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def _truncate(path: Path, kept: LogMark) -> None:
    """Drops what was logged after the checkpoint that this run goes on from."""
    with explained(path, "written"), path.open("a+b") as stream:
        stream.seek(0)
        start = stream.read(kept.bytes)
        if hashlib.sha256(start).hexdigest() != kept.sha256:
            raise DamageError(
                "The log is damaged: it does not begin with what the checkpoint says.",
                file=path,
                found="other bytes" if len(start) == kept.bytes else f"{len(start)} bytes",
                expected=f"{kept.bytes} bytes of SHA-256 {kept.sha256[:16]}",
                remedy="bring the file back, or delete the folder: the training begins anew",
            )
        stream.truncate(kept.bytes)
