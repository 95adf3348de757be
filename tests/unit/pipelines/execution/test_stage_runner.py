"""The runner on a stage that does almost nothing: what is kept, made again, refused, and marked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fusionx.contract.errors import DataError, IncompleteError
from fusionx.contract.files.lock import folder_lock
from fusionx.contract.files.storage import join
from fusionx.contract.shards.manifest import read_manifest
from fusionx.contract.shards.parts import PartEntry, Provenance, differences, write_part
from fusionx.contract.shards.schema import CHUNKS, text_hash
from fusionx.contract.stage import Resources, Unit, Worker
from fusionx.pipelines.execution.executor import InlineExecutor
from fusionx.pipelines.execution.stage_runner import run_stages


@dataclass(frozen=True)
class FakeStage:
    output: str
    count: int = 4
    word: str = "hello"
    fails: frozenset[int] = frozenset()
    made: list[int] = field(default_factory=list)

    name = "fake/source-a"
    kind = "chunks"
    resources = Resources()

    def units(self) -> Iterator[Unit]:
        for index in range(self.count):
            yield Unit(index, "train", {}, {"documents": f"{index}"}, payload=[index])

    def provenance(self, unit: Unit) -> Provenance:
        return Provenance(self.kind, unit.split, {"word": self.word}, unit.hashes, {"source": "a"})

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        return differences(found, self.provenance(unit))

    def worker(self) -> Worker:
        def work(unit: Unit) -> PartEntry:
            self.made.append(unit.index)
            if unit.index in self.fails:
                raise ZeroDivisionError("a bug of ours")
            text = f"{self.word} {unit.index}"
            rows: dict[str, Any] = {"doc_id": [unit.index], "chunk": [0], "text_hash": [text_hash(text)]}
            table = pa.table({**rows, "domain": ["d"], "text": [text]}, schema=CHUNKS)
            return write_part(join(self.output, unit.part), table, self.provenance(unit), tokens=2)

        return work


def run(stage: FakeStage, overwrite: bool = False) -> Any:
    stage.made.clear()
    return run_stages([stage], InlineExecutor(), overwrite)[0]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.fixture
def stage(tmp_path: Path) -> FakeStage:
    made = FakeStage(str(tmp_path))
    assert run(made).made == 4
    return made


def test_what_verifies_is_kept(stage: FakeStage, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    report = run(stage)
    assert (report.made, report.kept, stage.made) == (0, 4, [])
    assert snapshot(tmp_path) == before


def cut(data: bytes) -> bytes:
    return data[:-9]


def flip(data: bytes) -> bytes:
    return data[:200] + bytes([data[200] ^ 4]) + data[201:]


@pytest.mark.parametrize("damage", [cut, flip, lambda data: b"", None])
def test_only_the_damaged_part_is_made_again_with_the_same_bytes(stage: FakeStage, tmp_path: Path, damage: Any) -> None:
    before = snapshot(tmp_path)
    path = tmp_path / "part-00002.parquet"
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    report = run(stage)
    assert (report.made, stage.made) == (1, [2])
    after = snapshot(tmp_path)
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    assert all(after[f"part-0000{i}.parquet"] == before[f"part-0000{i}.parquet"] for i in (0, 1, 3))


def test_every_flipped_bit_of_a_finished_part_is_noticed(stage: FakeStage, tmp_path: Path) -> None:
    path = tmp_path / "part-00001.parquet"
    data = path.read_bytes()
    for position in range(0, len(data), 97):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        run(stage)
        assert stage.made == [1], position
        assert path.read_bytes() == data


def test_a_changed_config_is_refused_by_name_and_made_with_overwrite(stage: FakeStage, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    other = FakeStage(str(tmp_path), word="goodbye")
    with pytest.raises(DataError, match=r'config\.word: found "hello", expected "goodbye"') as caught:
        run(other)
    assert "part-00000.parquet" in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert snapshot(tmp_path) == before
    assert run(other, overwrite=True).made == 4
    assert read_manifest(str(tmp_path), "chunks", "chunk").config == {"word": "goodbye"}


def test_parts_that_the_run_does_not_make_are_refused_and_deleted_with_overwrite(
    stage: FakeStage, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("a user's own")
    fewer = FakeStage(str(tmp_path), count=2)
    with pytest.raises(DataError, match=r"part-00002\.parquet"):
        run(fewer)
    assert (tmp_path / "part-00003.parquet").exists()
    run(fewer, overwrite=True)
    names = sorted(os.listdir(tmp_path))
    assert names == [".lock", "README.md", "manifest.json", "notes.txt", "part-00000.parquet", "part-00001.parquet"]
    assert len(read_manifest(str(tmp_path), "chunks", "chunk").parts) == 2


def test_more_units_later_keep_what_is_there(stage: FakeStage, tmp_path: Path) -> None:
    more = FakeStage(str(tmp_path), count=6)
    assert run(more).made == 2
    assert more.made == [4, 5]


def test_a_failing_unit_is_named_the_others_are_kept_and_nothing_vouches_for_them(tmp_path: Path) -> None:
    failing = FakeStage(str(tmp_path), fails=frozenset({1}))
    with pytest.raises(IncompleteError) as caught:
        run(failing)
    text = str(caught.value)
    for word in ("fake/source-a", "unit 1", "part-00001.parquet", "ZeroDivisionError", "a bug of ours", "1 of 4"):
        assert word in text
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == [f"part-0000{i}.parquet" for i in (0, 2, 3)]
    assert failing.made == [0, 1, 2, 3], "an application error is not retried"
    mended = FakeStage(str(tmp_path))
    assert run(mended).made == 1
    assert mended.made == [1]


def test_the_manifest_is_gone_while_the_output_is_incomplete(stage: FakeStage, tmp_path: Path) -> None:
    (tmp_path / "part-00001.parquet").unlink()
    with pytest.raises(IncompleteError):
        run(FakeStage(str(tmp_path), fails=frozenset({1})))
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("content", ["", "{}", '{"kind": "logits"}'])
def test_a_damaged_manifest_is_written_again(stage: FakeStage, tmp_path: Path, content: str) -> None:
    before = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").write_text(content)
    assert run(stage).made == 0
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_manifest_left_out_is_written_again_equal(stage: FakeStage, tmp_path: Path) -> None:
    before = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").unlink()
    (tmp_path / ".part-00000.parquet.12345678.tmp").write_bytes(b"killed")
    assert run(stage).made == 0
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert len(os.listdir(tmp_path)) == 7, "four parts, their card, the manifest, and the lock"


def test_no_units_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to do"):
        run(FakeStage(str(tmp_path), count=0))


def test_of_two_commands_on_one_output_the_second_is_refused(tmp_path: Path) -> None:
    """Else both would make every part."""
    stage = FakeStage(str(tmp_path))
    with folder_lock(tmp_path), pytest.raises(DataError, match="Another command `fusionx fake` is writing"):
        run(stage)
    assert stage.made == []
    assert run(stage).made == 4
    with folder_lock(tmp_path):
        assert run(stage).kept == 4, "what is finished is only read"
