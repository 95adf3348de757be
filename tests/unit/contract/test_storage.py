"""Files that appear whole or not at all, locally and behind other filesystems."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from contract import storage
from contract.errors import DataError


def test_a_write_replaces_whole_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    storage.write_bytes(path, b"one")
    storage.write_bytes(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["b.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "part.parquet"
    storage.write_bytes(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, step, full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["part.parquet"]


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".part-00000.parquet.1234abcd.tmp", "part-00000.parquet", ".hidden", "x.tmp"):
        (tmp_path / name).write_bytes(b"x")
    storage.remove_leftovers(tmp_path)
    storage.remove_leftovers(tmp_path / "none")
    assert sorted(os.listdir(tmp_path)) == [".hidden", "part-00000.parquet", "x.tmp"]


@pytest.fixture(params=["plain", "file", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    unique = uuid.uuid4().hex
    return {"plain": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{unique}"}[request.param]


def test_every_kind_of_path_reads_lists_and_writes(base: str) -> None:
    folder = storage.join(base, "out", "logits")
    assert storage.list_files(folder) == []
    assert not storage.exists(storage.join(folder, "a"))
    for name in ("b", "a"):
        storage.write_bytes(storage.join(folder, name), name.encode())
    assert storage.list_files(folder) == ["a", "b"]
    assert storage.read_bytes(storage.join(folder, "b")) == b"b"
    storage.write_bytes(storage.join(folder, "b"), b"")
    assert storage.read_bytes(storage.join(folder, "b")) == b""
    storage.remove_leftovers(folder)


def test_a_missing_file_is_named(base: str) -> None:
    with pytest.raises(DataError, match=r"none\.parquet"):
        storage.read_bytes(storage.join(base, "none.parquet"))


def test_join_keeps_schemes() -> None:
    assert storage.join("s3://bucket/run/", "chunks", "a") == "s3://bucket/run/chunks/a"
    assert storage.join(Path("/x"), "y") == "/x/y"
