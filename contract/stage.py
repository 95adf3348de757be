"""What a stage is: units of work that follow from data and config, and a worker that turns one unit into one part.

A stage knows nothing of placement. `pipelines.execution.stage_runner` decides which units are missing, an executor runs
workers wherever it likes, and the manifest is written when every part is there.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol, runtime_checkable

from fusionx.contract.files.storage import join
from fusionx.contract.shards.manifest import Manifest
from fusionx.contract.shards.parts import PartEntry, Provenance, part_name


@dataclass(frozen=True)
class Unit:
    """One part to make: its number, its split, its input parts (name -> path), their hashes, and inline data if any."""

    index: int
    split: str
    inputs: dict[str, str]
    hashes: dict[str, str]
    payload: Any = field(default=None, repr=False)

    @property
    def part(self) -> str:
        return part_name(self.index)


def units_of_chunks(folder: str, manifest: Manifest, splits: Iterable[str]) -> list[Unit]:
    """A unit for each part of chunks of these splits, with its number, so that what is made of it has its name.

    Args: folder: where the chunks lie. manifest: theirs.
    """
    wanted = frozenset(splits)
    return [
        Unit(index, part.split, {"chunks": join(folder, part.name)}, {"chunks": part.sha256})
        for index, part in enumerate(manifest.parts)
        if part.split in wanted
    ]


@dataclass(frozen=True)
class Resources:
    """What one worker needs. `workers` is the size of the pool, never part of the data.

    `concurrency` units are in one worker's hands at once, each in a thread of its own: while one is computed, the
    next one's text is read and tokenized and the last one's part is written. A worker with more than one guards what
    only one unit may use at a time. `custom` are a cluster's own resources, by name as in `ray start --resources`.
    """

    workers: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    concurrency: int = 1
    custom: dict[str, float] = field(default_factory=dict)


Worker = Callable[[Unit], PartEntry]

_RECENT_UNITS = 15


class Occupancy:
    """How many units in hand keep in use what a worker's units use one at a time, such as its device.

    Each unit needs it for some seconds, and some without it: where the others take three times as long, there must be
    three more units in hand. Of the last units; threads may share it.
    """

    def __init__(self) -> None:
        self._unit = threading.local()
        self._free_since = 0.0
        self._without: deque[float] = deque(maxlen=_RECENT_UNITS)
        """Of the last units: seconds without it per second with it."""

    @contextmanager
    def unit(self) -> Iterator[None]:
        """One unit, from its first step to its last."""
        begun = time.monotonic()
        self._unit.used = self._unit.waited = 0.0
        yield
        if self._unit.used:
            self._without.append((time.monotonic() - begun - self._unit.waited) / self._unit.used)

    @contextmanager
    def used(self) -> Iterator[None]:
        """From where a unit asks for it to where it is free again, or the results that it gave are there."""
        asked = time.monotonic()
        yield
        ended = time.monotonic()
        self._unit.used = ended - max(asked, self._free_since)
        self._unit.waited = ended - asked
        self._free_since = ended

    @property
    def units_needed(self) -> int:
        """Two until it is known, and at the least."""
        return 1 + max(1, math.ceil(median(self._without))) if self._without else 2


@runtime_checkable
class OverlappingWorker(Protocol):
    """A worker that makes several units at once, and measures how many keep it busy."""

    @property
    def occupancy(self) -> Occupancy: ...

    def __call__(self, unit: Unit) -> PartEntry: ...


class Pool(Protocol):
    """What an executor needs to know: whose workers run, and what one of them takes. Implementations are picklable."""

    @property
    def name(self) -> str:
        """The command and, where there is one, the source: `precompute/coder`."""

    @property
    def resources(self) -> Resources: ...

    def worker(self) -> Worker:
        """Loads what the work needs (a model, tokenizers) and returns the function that makes and commits one part."""


class Stage(Pool, Protocol):
    """A stage as the runner sees it."""

    @property
    def kind(self) -> str:
        """The schema of its parts: a key of `contract.shards.schema.SCHEMAS`."""

    @property
    def output(self) -> str:
        """The folder of its parts."""

    def units(self) -> Iterable[Unit]: ...

    def provenance(self, unit: Unit) -> Provenance: ...

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        """Why a part with the footer `found` is not the part of `unit`; empty when it is."""
