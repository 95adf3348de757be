"""Runs a stage: finds the units whose part is missing or damaged, has them made, writes the manifest last."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from contract.errors import DataError, FusionXError, IncompleteError
from contract.manifest import MANIFEST_NAME, Manifest, build_manifest, has_manifest, read_manifest, write_manifest
from contract.shard import PartEntry, inspect_part
from contract.stage import Resources, Stage, Unit, Worker
from contract.storage import exists, filesystem, join, list_files, remove_leftovers
from pipelines.executors import Executor

_PART_NAME = re.compile(r"part-\d{5,}\.parquet")


@dataclass
class StageReport:
    """What a call did: parts kept and made."""

    name: str
    manifest: Manifest
    made: int
    kept: int


@dataclass
class _Progress:
    """One line per finished unit on a terminal, every few seconds in a log."""

    name: str
    started: float = field(default_factory=time.monotonic)
    shown: float = 0.0
    units: int = 0
    tokens: int = 0

    def add(self, entry: PartEntry) -> None:
        self.units += 1
        self.tokens += entry.tokens
        now = time.monotonic()
        if sys.stderr.isatty() or now - self.shown > 5:
            self.shown = now
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        speed = f", {self.tokens / seconds:,.0f} tokens/s" if self.tokens else ""
        return f"[{self.name}] {self.units} units done in {seconds:.1f} s{speed}"


def run_stages(stages: Sequence[Stage], executor: Executor, overwrite: bool = False) -> list[StageReport]:
    """Brings the outputs of stages that do not depend on each other to completion, in one pool of workers.

    A part that verifies is kept, a damaged or missing one is made, one that was made from something else is refused
    (with `overwrite` it is made anew).

    Raises:
        DataError: a part or manifest belongs to another config or input; every difference is named.
        IncompleteError: some units failed; the others are finished and kept.
    """
    runs = [_StageRun(stage, overwrite) for stage in stages]
    numbered = ((number, unit) for number, run in enumerate(runs) for unit in run.pending())
    wrapped = (Unit(index, unit.split, {}, {}, payload=(number, unit)) for index, (number, unit) in enumerate(numbered))
    for outer, outcome in executor.map(StageGroup(list(stages)), wrapped):
        number, unit = outer.payload
        runs[number].take(unit, outcome)
    failed = [run for run in runs if run.failures]
    if failed:
        raise _incomplete(failed)
    return [run.finish() for run in runs]


@dataclass(frozen=True)
class StageGroup:
    """Stages that share one pool; a worker holds one stage's model at a time."""

    stages: list[Stage]

    @property
    def name(self) -> str:
        return ", ".join(stage.name for stage in self.stages)

    @property
    def resources(self) -> Resources:
        return self.stages[0].resources

    def worker(self) -> GroupWorker:
        return GroupWorker(self.stages)


class GroupWorker:
    """Makes parts of whichever stage a unit belongs to."""

    def __init__(self, stages: list[Stage]) -> None:
        self._stages = stages
        self._loaded = -1
        self._worker: Worker | None = None

    def __call__(self, unit: Unit) -> PartEntry:
        number, inner = unit.payload
        if self._worker is None or self._loaded != number:
            self._worker = None  # lets the last stage's model go before the next one is loaded
            self._worker = self._stages[number].worker()
            self._loaded = number
        return self._worker(inner)


class _StageRun:
    """One stage under way: what is kept, what was made, what failed."""

    def __init__(self, stage: Stage, overwrite: bool) -> None:
        self.stage = stage
        self.failures: list[tuple[Unit, FusionXError]] = []
        self.units: list[Unit] = []
        self._overwrite = overwrite
        self._entries: dict[int, PartEntry] = {}
        self._kept = 0
        self._progress = _Progress(stage.name)

    def pending(self) -> Iterator[Unit]:
        """Units whose part is missing or damaged; the others are taken as they are."""
        remove_leftovers(self.stage.output)
        listed = _listed_hashes(self.stage)
        for unit in self.stage.units():
            self.units.append(Unit(unit.index, unit.split, unit.inputs, unit.hashes))
            found = _finished_part(self.stage, unit, self._overwrite, listed.get(unit.part))
            if found is None:
                _unmark(self.stage.output)
                yield unit
            else:
                self._kept += 1
                self._entries[unit.index] = found

    def take(self, unit: Unit, outcome: PartEntry | FusionXError) -> None:
        if isinstance(outcome, PartEntry):
            self._entries[unit.index] = outcome
            self._progress.add(outcome)
        else:
            self.failures.append((unit, outcome))

    def finish(self) -> StageReport:
        stage = self.stage
        if not self.units:
            raise DataError(f"The stage {stage.name} has nothing to do.", file=stage.output, found="0 units")
        manifest = _mark(stage, self.units, self._entries, self._overwrite)
        report = StageReport(stage.name, manifest, len(self.units) - self._kept, self._kept)
        print(_summary(report), file=sys.stderr, flush=True)
        return report


def _listed_hashes(stage: Stage) -> dict[str, str]:
    """SHA-256 of every part as a finished output's manifest has it; empty without one."""
    standing = _standing_manifest(stage)
    return {} if standing is None else {part.name: part.sha256 for part in standing.parts}


def _finished_part(stage: Stage, unit: Unit, overwrite: bool, listed: str | None) -> PartEntry | None:
    """The part's entry if it is whole and made from exactly this; None if it has to be made.

    A part whose hash is not the one that the manifest lists (`listed`) has changed since, even if it still reads.

    Raises:
        DataError: it is whole, but was made from something else, and `overwrite` is off.
    """
    path = join(stage.output, unit.part)
    if not exists(path):
        return None
    try:
        found = inspect_part(path, listed)
    except DataError as error:
        print(f"[{stage.name}] {unit.part} is made again. {error}", file=sys.stderr)
        return None
    changed = stage.differences(found.provenance, unit)
    if not changed:
        return found.entry
    if overwrite:
        return None
    raise DataError(
        "A part was made from something else than this run asks for.",
        file=path,
        field=changed[0].split(":")[0],
        found="; ".join(changed),
        remedy="restore the config or input, choose another output, or run with --overwrite to make it again",
    )


def _mark(stage: Stage, units: list[Unit], entries: dict[int, PartEntry], overwrite: bool) -> Manifest:
    """Writes the manifest, unless an equal one stands there."""
    there = {name for name in list_files(stage.output) if _PART_NAME.fullmatch(name)}  # other files are none of ours
    extra = sorted(there - {unit.part for unit in units})
    if extra and not overwrite:
        raise DataError(
            "A folder holds parts that this run does not make.",
            file=join(stage.output, extra[0]),
            found=f"{len(extra)} more than the {len(units)} expected",
            remedy="move them away, choose another output, or run with --overwrite to delete them",
        )
    if extra:
        _unmark(stage.output)
    for name in extra:
        fs, inner = filesystem(join(stage.output, name))
        fs.delete_file(inner)
    provenance = stage.provenance(units[0])
    parts = [entries[unit.index] for unit in units]
    manifest = build_manifest(stage.kind, provenance.config, provenance.identity, parts)
    standing = _standing_manifest(stage)
    if standing is not None and standing.parts == manifest.parts:
        return standing
    write_manifest(stage.output, manifest)
    return manifest


def _standing_manifest(stage: Stage) -> Manifest | None:
    """The manifest that is there; None without one and where it is damaged, for then it is written anew."""
    if not has_manifest(stage.output):
        return None
    try:
        return read_manifest(stage.output, stage.kind, stage.name)
    except DataError as error:
        print(f"[{stage.name}] the manifest is written again. {error}", file=sys.stderr)
        return None


def _unmark(folder: str) -> None:
    """Takes the manifest away before the first part changes, so that it never vouches for a half-made output."""
    path = join(folder, MANIFEST_NAME)
    if exists(path):
        fs, inner = filesystem(path)
        fs.delete_file(inner)


def _incomplete(runs: list[_StageRun]) -> IncompleteError:
    unit, first = runs[0].failures[0]
    counts = ", ".join(f"{len(run.failures)} of {len(run.units)} units of {run.stage.name}" for run in runs)
    return IncompleteError(
        f"The stage {runs[0].stage.name} is incomplete: {counts} failed; the others are kept.",
        file=join(runs[0].stage.output, unit.part),
        found=f"first failure, unit {unit.index}: {first}",
        remedy="mend the cause and run the same command again",
    )


def _summary(report: StageReport) -> str:
    totals = report.manifest.totals
    return (
        f"[{report.name}] complete: {report.made} parts made, {report.kept} kept; {totals['rows']:,} rows, "
        f"{totals['tokens']:,} tokens, {totals['bytes'] / 1e6:.1f} MB"
    )
