"""Runs a stage: finds the units whose part is missing or damaged, has them made, writes the manifest last."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from contract.errors import DataError, FusionXError, IncompleteError
from contract.manifest import MANIFEST_NAME, Manifest, build_manifest, has_manifest, read_manifest, write_manifest
from contract.shard import PartEntry, inspect_part
from contract.stage import Stage, Unit
from contract.storage import exists, filesystem, join, list_files, remove_leftovers
from pipelines.executors import Executor

_PART_NAME = re.compile(r"part-\d{5,}\.parquet")


@dataclass
class StageReport:
    """What a call did: parts kept and made, and the seconds it took."""

    name: str
    manifest: Manifest
    made: int
    kept: int
    seconds: float


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


def run_stage(stage: Stage, executor: Executor, overwrite: bool = False) -> StageReport:
    """Brings a stage's output to completion and returns its manifest.

    A part that verifies is kept, a damaged or missing one is made, one that was made from something else is refused
    (with `overwrite` it is made anew).

    Raises:
        DataError: a part or manifest belongs to another config or input; every difference is named.
        IncompleteError: some units failed; the others are finished and kept.
    """
    started = time.monotonic()
    remove_leftovers(stage.output)
    entries: dict[int, PartEntry] = {}
    failures: list[tuple[Unit, FusionXError]] = []
    progress = _Progress(stage.name)
    listed = _listed_hashes(stage)
    units: list[Unit] = []
    kept = 0

    def pending() -> Iterator[Unit]:
        nonlocal kept
        for unit in stage.units():
            units.append(Unit(unit.index, unit.split, unit.inputs, unit.hashes))
            found = _finished_part(stage, unit, overwrite, listed.get(unit.part))
            if found is None:
                _unmark(stage.output)
                yield unit
            else:
                kept += 1
                entries[unit.index] = found

    for unit, outcome in executor.map(stage, pending()):
        if isinstance(outcome, PartEntry):
            entries[unit.index] = outcome
            progress.add(outcome)
        else:
            failures.append((unit, outcome))
    if failures:
        raise _incomplete(stage, failures, len(units))
    if not units:
        raise DataError(f"The stage {stage.name} has nothing to do.", file=stage.output, found="0 units")
    manifest = _mark(stage, units, entries, overwrite)
    made = len(units) - kept
    print(_summary(stage.name, made, kept, manifest, time.monotonic() - started), file=sys.stderr, flush=True)
    return StageReport(stage.name, manifest, made, kept, time.monotonic() - started)


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


def _incomplete(stage: Stage, failures: list[tuple[Unit, FusionXError]], total: int) -> IncompleteError:
    unit, first = failures[0]
    return IncompleteError(
        f"The stage {stage.name} is incomplete: {len(failures)} of {total} units failed; the others are kept.",
        file=join(stage.output, unit.part),
        found=f"first failure, unit {unit.index}: {first}",
        remedy="mend the cause and run the same command again",
    )


def _summary(name: str, made: int, kept: int, manifest: Manifest, seconds: float) -> str:
    totals = manifest.totals
    return (
        f"[{name}] complete: {made} parts made, {kept} kept; {totals['rows']:,} rows, {totals['tokens']:,} tokens, "
        f"{totals['bytes'] / 1e6:.1f} MB; {seconds:.1f} s"
    )
