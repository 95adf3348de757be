"""Runs a stage: finds the units whose part is missing or damaged, has them made, writes the manifest last."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fusionx.contract.errors import DataError, FusionXError, IncompleteError
from fusionx.contract.files.lock import folder_lock
from fusionx.contract.files.storage import (
    delete,
    exists,
    explained,
    is_local,
    join,
    list_files,
    plain,
    remove_leftovers,
)
from fusionx.contract.progress import CellLine, bar, clock, in_notebook
from fusionx.contract.shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    build_manifest,
    has_manifest,
    read_manifest,
    write_manifest,
)
from fusionx.contract.shards.parts import PartEntry, inspect_part
from fusionx.contract.stage import Stage, Unit
from fusionx.eval.report.tables.cells import bytes_text
from fusionx.pipelines.execution.executor import Executor
from fusionx.pipelines.execution.interruption import stopped_by_signals

_PART_NAME = re.compile(r"part-\d{5,}\.parquet")
_LOG_SECONDS = 5


@dataclass
class StageReport:
    """What a call did: parts kept and made."""

    name: str
    manifest: Manifest
    made: int
    kept: int


def run_stages(stages: Sequence[Stage], executor: Executor, overwrite: bool = False) -> list[StageReport]:
    """Brings the outputs of stages that do not depend on each other to completion, in one pool of workers.

    A part that verifies is kept, a damaged or missing one is made, one that was made from something else is refused
    (with `overwrite` it is made anew).

    Raises:
        DataError: a part or manifest belongs to another config or input (every difference is named), or another command
            is making them.
        IncompleteError: some units failed; what is finished is kept. StoppedError: likewise, a signal asked for it.
    """
    for stage in stages:
        _make_folder(stage.output)
    with ExitStack() as locks, stopped_by_signals("finished parts"), _cleared_line():
        runs = [_StageRun(stage, overwrite, locks) for stage in stages]
        jobs = ((number, unit) for number, run in enumerate(runs) for unit in run.pending())
        for (number, unit), outcome in executor.map(stages, jobs):
            runs[number].take(unit, outcome)
        failed = [run for run in runs if run.failures]
        if failed:
            raise _incomplete(failed)
        return [run.finish() for run in runs]


@contextmanager
def _cleared_line() -> Iterator[None]:
    """What is said next does not stand behind a progress line that was not finished."""
    try:
        yield
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@dataclass
class _Progress:
    """How far a stage is: one line that changes on a terminal and in a notebook, a line every few seconds in a log."""

    name: str
    total: int | None = None
    """Units of the stage; None while that is not known."""
    kept: int = 0
    made: int = 0
    tokens: int = 0
    """Of all parts made but the first: until that one is there, processes start and models load."""
    started: float = 0.0
    """When the first part was there."""
    shown: float = 0.0
    cell: CellLine = field(default_factory=CellLine)

    def add(self, entry: PartEntry) -> None:
        now = time.monotonic()
        if self.made:
            self.tokens += entry.tokens
        else:
            self.started = now
        self.made += 1
        last = self.total == self.kept + self.made
        if sys.stderr.isatty():
            print(f"\r{self.line()}\x1b[K", end="\n" if last else "", file=sys.stderr, flush=True)
        elif in_notebook():
            self.cell.show(self.line())
        elif last or now - self.shown > _LOG_SECONDS:
            self.shown = now
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        done = self.kept + self.made
        seconds = max(time.monotonic() - self.started, 1e-9)
        facts = [
            f"{done:,} units" if self.total is None else f"{bar(done / self.total)}{done:,} of {self.total:,} units"
        ]
        if self.tokens:
            facts.append(f"{self.tokens / seconds:,.0f} tokens/s")
        if self.total is not None and self.made > 1:
            facts.append(f"{clock((self.total - done) * seconds / (self.made - 1))} left")
        return f"[{self.name}] " + ", ".join(facts)


class _StageRun:
    """One stage under way: what is kept, what was made, what failed."""

    def __init__(self, stage: Stage, overwrite: bool, locks: ExitStack) -> None:
        self.stage = stage
        self._locks = locks
        self._is_sole = False
        self.failures: list[tuple[Unit, FusionXError]] = []
        self.units: list[Unit] = []
        self._overwrite = overwrite
        self._entries: dict[int, PartEntry] = {}
        self._progress = _Progress(stage.name)

    def pending(self) -> Iterator[Unit]:
        """Units whose part is missing or damaged; the others are taken as they are.

        From the first one on this command has the output for itself. A finished output is only read.
        """
        listed = _listed_hashes(self.stage)
        units = self.stage.units()
        self._progress = _Progress(self.stage.name, len(units) if isinstance(units, Sized) else None)
        for unit in units:
            self.units.append(Unit(unit.index, unit.split, unit.inputs, unit.hashes))
            found = _finished_part(self.stage, unit, self._overwrite, listed.get(unit.part))
            if found is None and not self._is_sole:
                self._keep_others_out()
                found = _finished_part(self.stage, unit, self._overwrite, listed.get(unit.part))
            if found is None:
                _unmark(self.stage.output)
                yield unit
            else:
                self._progress.kept += 1
                self._entries[unit.index] = found
        self._progress.total = len(self.units)

    def _keep_others_out(self) -> None:
        """An object store has no locks: there two commands at once make the same parts twice, each whole.

        Raises:
            DataError: another command is making this output.
        """
        output = plain(self.stage.output)
        if is_local(output):
            self._locks.enter_context(folder_lock(Path(output), f"command `fusionx {self.stage.name.split('/')[0]}`"))
            remove_leftovers(output)
        self._is_sole = True

    def take(self, unit: Unit, outcome: PartEntry | FusionXError) -> None:
        if isinstance(outcome, PartEntry):
            self._entries[unit.index] = outcome
            self._progress.add(outcome)
        else:
            if not self.failures:  # at once; the others go on, and how many failed is said at the end
                print(f"[{self.stage.name}] unit {unit.index} failed. {outcome}", file=sys.stderr, flush=True)
            self.failures.append((unit, outcome))

    def finish(self) -> StageReport:
        stage = self.stage
        if not self.units:
            raise DataError(f"The stage {stage.name} has nothing to do.", file=stage.output, found="0 units")
        if not self._is_sole and not has_manifest(stage.output):
            self._keep_others_out()
        manifest = _mark(stage, self.units, self._entries, self._overwrite)
        report = StageReport(stage.name, manifest, self._progress.made, self._progress.kept)
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
        delete(join(stage.output, name))
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


def _make_folder(folder: str) -> None:
    """A local one must stand before any worker looks for it; an object store has no folders."""
    if is_local(folder):
        with explained(folder, "made"):
            os.makedirs(plain(folder), exist_ok=True)


def _unmark(folder: str) -> None:
    """Takes the manifest away before the first part changes, so that it never vouches for a half-made output."""
    path = join(folder, MANIFEST_NAME)
    if exists(path):
        delete(path)


def _incomplete(runs: list[_StageRun]) -> IncompleteError:
    unit, first = runs[0].failures[0]
    *_, cause = ["", *str(first.details.get("found", "")).strip().splitlines()]  # of a traceback the error itself
    counts = ", ".join(f"{len(run.failures)} of {len(run.units)} units of {run.stage.name}" for run in runs)
    return IncompleteError(
        f"The stage {runs[0].stage.name} is incomplete: {counts} failed; the others are kept.",
        file=join(runs[0].stage.output, unit.part),
        found=f"first failure, unit {unit.index}, told above: {first.problem} {cause}".rstrip(),
        remedy=first.details.get("remedy", "mend the cause and run the same command again"),
    )


def _summary(report: StageReport) -> str:
    totals = report.manifest.totals
    tokens = f"{totals['tokens']:,} tokens, " if totals["tokens"] else ""  # a text is none before it is read by a model
    return (
        f"[{report.name}] complete: {report.made} parts made, {report.kept} kept; {totals['rows']:,} rows, {tokens}"
        f"{bytes_text(totals['bytes'])}"
    )
