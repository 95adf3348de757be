"""Killed before any durable call, or without power: what is written is the old or the new, and a run goes on."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import in_a_fork

from fusionx.benchmarks.crash.points import Points
from fusionx.benchmarks.crash.power import lose_power
from fusionx.benchmarks.crash.process import ended
from fusionx.contract.files.atomic_folder import atomic_folder, recover
from fusionx.contract.files.storage import write_bytes

OLD, NEW = b"old content", b"new"
Write = Callable[[Path], None]


def killed_in(write: Write, root: Path, kill_at: int) -> tuple[int, Points]:
    """Runs `write` in a process that is killed before that durable call; its exit code."""
    (root.parent / "kept").mkdir(exist_ok=True)
    points = Points(root, root.parent / "journal", root.parent / "kept", kill_at)
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        points.watch()
        write(root)
        os._exit(0)
    return ended(process), points


def after_each_kill(write: Write, prepare: Write, folder: Path, lossy: bool) -> Iterator[Path]:
    """What is there after a kill at every durable call in turn; `lossy`: and without power, in three ways."""
    number, done = 0, False
    while not done:
        number += 1
        for seed in range(3 if lossy else 1):
            root = folder / f"{number}-{seed}" / "out"
            root.mkdir(parents=True)
            prepare(root)
            code, points = killed_in(write, root, number)
            done = code == 0
            assert points.count >= number or done
            if lossy:
                _flushed(root, root.parent / "journal")
                lose_power(root, root.parent / "journal", random.Random(seed))
            yield root
    assert number > 3, "nothing was seen of it"


def _flushed(root: Path, journal: Path) -> None:
    """What was there before is on the disk: noted ahead of all calls."""
    lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
    for path in [path for path in root.rglob("*") if path.is_file()]:
        if path.read_bytes() == OLD:
            found = path.stat()
            lines.insert(0, f'["data", "{path}", {found.st_ino}, {found.st_size}, {found.st_mtime_ns}]\n')
    journal.write_text("".join(lines))


@pytest.mark.parametrize("lossy", [False, True])
def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, lossy: bool) -> None:
    found = set()
    for root in after_each_kill(
        lambda root: write_bytes(root / "a", NEW), lambda root: (root / "a").write_bytes(OLD) and None, tmp_path, lossy
    ):
        found.add((root / "a").read_bytes())
        write_bytes(root / "a", NEW)
        assert {path.name: path.read_bytes() for path in root.iterdir()} == {"a": NEW}, "something is left over"
    assert found == {OLD, NEW}


@pytest.mark.parametrize("lossy", [False, True])
def test_a_folder_is_the_old_one_or_the_new_one(tmp_path: Path, lossy: bool) -> None:
    def prepare(root: Path) -> None:
        (root / "model").mkdir()
        (root / "model" / "a").write_bytes(OLD)

    def write(root: Path) -> None:
        with atomic_folder(root / "model") as made:
            (made / "a").write_bytes(NEW)

    found = set()
    for root in after_each_kill(write, prepare, tmp_path, lossy):
        recover(root / "model")
        found.add((root / "model" / "a").read_bytes())
        write(root)
        assert [path.relative_to(root).as_posix() for path in sorted(root.rglob("*"))] == ["model", "model/a"]
    assert found == {OLD, NEW}


def careless_rename(root: Path) -> None:
    (root / "b").write_bytes(NEW)
    os.replace(root / "b", root / "a")


def careless_overwrite(root: Path) -> None:
    (root / "a").write_bytes(NEW)


@pytest.mark.parametrize("write", [careless_rename, careless_overwrite])
def test_a_careless_writer_is_found_out(write: Write, tmp_path: Path) -> None:
    """The trials themselves can fail: without fsync a loss of power leaves an empty file."""
    found: set[bytes] = set()
    for seed in range(6):
        root = tmp_path / str(seed) / "out"
        root.mkdir(parents=True)
        (root / "a").write_bytes(OLD)
        code, points = killed_in(write, root, 0)
        assert (code, points.count) == (0, 1 + (write is careless_rename))
        lose_power(root, root.parent / "journal", random.Random(seed))
        found |= {path.read_bytes() for path in root.iterdir()}
    assert b"" in found
    assert NEW not in found


@pytest.mark.slow
def test_a_run_goes_on_from_wherever_it_was_killed() -> None:
    """The short form of `fusionx bench crash`."""
    found = {(case, metric): value for case, metric, value in in_a_fork(crash_figures, 2, 2, 2)}
    assert found["uninterrupted", "durable calls"] > 300
    tried = {case: value for (case, metric), value in found.items() if metric == "tried"}
    assert tried == {"crash point": 2, "power loss": 2, "instant": 1, "instant, command only": 1}
    assert {case: value for (case, metric), value in found.items() if metric == "identical"} == tried


def crash_figures(points: int, instants: int, losses: int) -> list[tuple[str, str, Any]]:
    from fusionx.benchmarks.crash import figures

    return [(figure.case, figure.metric, figure.value) for figure in figures(points, instants, losses, seed=7)]
