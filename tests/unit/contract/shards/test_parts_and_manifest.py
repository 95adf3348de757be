"""Parts and manifests: round trips, identical bytes, and no silent change whatever happens to a file."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from part_builder import table_of

import fusionx.contract.shards.parts as shard
from fusionx.contract.errors import DataError
from fusionx.contract.shards.manifest import (
    Manifest,
    build_manifest,
    has_manifest,
    read_manifest,
    verify_part,
    write_manifest,
)
from fusionx.contract.shards.parts import (
    PartEntry,
    Provenance,
    Ragged,
    differences,
    inspect_part,
    list_column,
    match_rows,
    part_name,
    read_part,
    read_provenance,
    write_part,
)
from fusionx.contract.shards.schema import SCHEMA_VERSION, SCHEMAS, text_hash
from fusionx.contract.weights import weights_identity


def provenance_of(kind: str) -> Provenance:
    return Provenance(kind, "train", {"k": 10, "maps": ["a"]}, {"chunks": "ab" * 32}, {"source": "coder"})


def write(path: Path, kind: str = "logits", rows: int = 40) -> PartEntry:
    stats = {"mass": 17.25, "skipped": {"empty": 1}}
    return write_part(str(path), table_of(kind, rows), provenance_of(kind), tokens=77, stats=stats)


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
@pytest.mark.parametrize("rows", [0, 1, 40, 2500])
def test_round_trip_and_identical_bytes(tmp_path: Path, kind: str, rows: int) -> None:
    entry = write(tmp_path / "a" / "part-00000.parquet", kind, rows)
    again = write(tmp_path / "b" / "part-00000.parquet", kind, rows)
    assert entry == again
    path = str(tmp_path / "a" / "part-00000.parquet")
    assert Path(path).read_bytes() == (tmp_path / "b" / "part-00000.parquet").read_bytes()
    found, provenance = read_part(path, kind, sha256=entry.sha256)
    assert found.replace_schema_metadata(None).equals(table_of(kind, rows).replace_schema_metadata(None))
    assert provenance == provenance_of(kind)
    info = inspect_part(path, entry.sha256)
    assert (info.entry, info.provenance) == (entry, provenance)
    assert (entry.rows, entry.tokens, entry.bytes) == (rows, 77, os.path.getsize(path))


def test_bytes_do_not_depend_on_how_the_table_is_chunked(tmp_path: Path) -> None:
    whole = table_of("tokens", 2000)
    pieces = pa.concat_tables([whole.slice(0, 700), whole.slice(700, 1), whole.slice(701)])
    entries = [
        write_part(str(tmp_path / name), table, provenance_of("tokens"), 0)
        for name, table in (("x/part-00000.parquet", whole), ("y/part-00000.parquet", pieces))
    ]
    assert entries[0] == entries[1]


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    write(tmp_path / "p.parquet")
    assert read_part(str(tmp_path / "p.parquet"), "logits", ["chunk", "ends"])[0].column_names == ["chunk", "ends"]


def test_a_part_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write(path)
    data = path.read_bytes()
    for length in [*range(0, len(data), max(1, len(data) // 60)), len(data) - 1]:
        path.write_bytes(data[:length])
        for read in (
            lambda: read_part(str(path), "logits"),
            lambda: inspect_part(str(path)),
            lambda: read_provenance(str(path)),
        ):
            with pytest.raises(DataError, match=r"p\.parquet"):
                read()


def test_a_flipped_bit_is_an_error_or_harmless_never_a_silent_change(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    entry = write(path)
    data = path.read_bytes()
    expected = read_part(str(path), "logits")
    info = inspect_part(str(path))
    rng = np.random.default_rng(0)
    footer = int.from_bytes(data[-8:-4], "little") + 8
    positions = {*rng.integers(0, len(data), 400).tolist(), *range(len(data) - footer, len(data), 3)}
    refused = 0
    for position in sorted(positions):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found, provenance = read_part(str(path), "logits")
        except DataError:
            refused += 1
        else:
            assert found.equals(expected[0]), position
            assert provenance == expected[1], position
        try:
            again = inspect_part(str(path))
        except DataError:
            pass
        else:
            same = (again.entry.rows, again.entry.tokens, again.entry.stats, again.entry.split)
            assert same == (entry.rows, entry.tokens, entry.stats, entry.split), position
            assert again.provenance == info.provenance, position
        with contextlib.suppress(DataError):
            assert read_provenance(str(path)) == info.provenance, position
        with pytest.raises(DataError):  # whoever knows the hash notices every flip
            read_part(str(path), "logits", sha256=entry.sha256)
    assert refused > len(positions) / 2


def test_wrong_kind_foreign_file_and_other_version_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "p.parquet")
    write(Path(path))
    with pytest.raises(DataError, match="another kind") as caught:
        read_part(path, "tokens")
    assert (caught.value.details["found"], caught.value.details["expected"]) == ("logits", "tokens")
    monkeypatch.setattr(shard, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    for read in (lambda: read_part(path, "logits"), lambda: inspect_part(path), lambda: read_provenance(path)):
        with pytest.raises(DataError, match="another schema version"):
            read()
    monkeypatch.undo()
    pq.write_table(table_of("logits"), path)
    with pytest.raises(DataError, match="no Fusion-X footer"):
        inspect_part(path)
    with pytest.raises(DataError, match="missing"):
        read_part(str(tmp_path / "none.parquet"), "logits")


def test_every_difference_is_named() -> None:
    left, right = provenance_of("logits"), provenance_of("logits")
    assert differences(left, right) == []
    right.config["k"] = 32
    right.identity["revision"] = "r"
    assert differences(left, right) == [
        "config.k: found 10, expected 32",
        'identity.revision: found (absent), expected "r"',
    ]


arrays = st.lists(st.lists(st.integers(-5, 5), max_size=6), max_size=8)


@given(arrays, st.integers(0, 8), st.integers(0, 8))
def test_ragged_reads_slices_chunks_and_nothing(rows: list[list[int]], start: int, length: int) -> None:
    column = list_column([np.array(row, np.int32) for row in rows], pa.int32())
    assert column.to_pylist() == rows
    for chunked in (
        pa.chunked_array([column]),
        pa.chunked_array([column, column.slice(0, 0)]),
        pa.chunked_array([column.slice(0, start), column.slice(start)]),
        pa.chunked_array([], type=pa.list_(pa.int32())) if not rows else pa.chunked_array([column]),
    ):
        ragged = Ragged.from_column(chunked)
        assert [ragged.row(index).tolist() for index in range(len(ragged))] == rows
        sliced = chunked.slice(start, length)
        part = Ragged.from_column(sliced)
        assert [part.row(index).tolist() for index in range(len(part))] == rows[start : start + length]
        assert part.lengths().tolist() == [len(row) for row in rows[start : start + length]]


def keyed(keys: list[tuple[int, int]], mark: str = "") -> pa.Table:
    docs, chunks = zip(*keys, strict=True) if keys else ((), ())
    hashes = [text_hash(f"{key}{mark}") for key in keys]
    return pa.table(
        {
            "doc_id": pa.array(docs, pa.int64()),
            "chunk": pa.array(chunks, pa.int32()),
            "text_hash": pa.array(hashes, pa.string()),
        }
    )


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3)), unique=True, min_size=1), st.randoms())
def test_rows_are_matched_by_key_never_by_place(keys: list[tuple[int, int]], random: Any) -> None:
    shuffled = random.sample(keys, len(keys))
    more = keyed(shuffled).append_column("place", pa.array(range(len(keys))))
    found = match_rows(keyed(keys), more, "l", "r")
    assert [shuffled[row] for row in found.column("place").to_pylist()] == keys


def test_missing_keys_and_other_texts_are_refused() -> None:
    with pytest.raises(DataError, match=r"no row \(2, 0\)"):
        match_rows(keyed([(1, 0), (2, 0)]), keyed([(1, 0)]), "l", "r")
    with pytest.raises(DataError, match="different texts"):
        match_rows(keyed([(1, 0)]), keyed([(1, 0)], "x"), "l", "r")
    assert len(match_rows(keyed([]), keyed([(1, 0)]), "l", "r")) == 0


def entry(index: int, **stats: Any) -> PartEntry:
    return PartEntry(part_name(index), "train", 3, 10 * index, 100, f"{index:064x}", stats)


def manifest() -> Manifest:
    parts = [
        entry(0, skipped={"empty": 1}, status={"code": {"exact": 3}}, mass=0.5),
        entry(1, skipped={}, status={"code": {"exact": 1}, "prose": {"exact": 2}}, mass=0.25),
        entry(2, skipped={"empty": 2, "lone surrogate": 1}, status={}, mass=0.0),
    ]
    return build_manifest("logits", {"k": 3}, {"source": "a"}, parts)


def test_a_manifest_adds_up_its_parts(tmp_path: Path) -> None:
    made = manifest()
    assert made.totals == {"rows": 9, "tokens": 30, "bytes": 300}
    assert made.stats == {
        "skipped": {"empty": 3, "lone surrogate": 1},
        "status": {"code": {"exact": 4}, "prose": {"exact": 2}},
        "mass": 0.75,
    }
    assert not has_manifest(str(tmp_path))
    write_manifest(str(tmp_path), made)
    assert has_manifest(str(tmp_path))
    assert read_manifest(str(tmp_path), "logits", "precompute") == made
    first = (tmp_path / "manifest.json").read_bytes()
    write_manifest(str(tmp_path), manifest())
    assert (tmp_path / "manifest.json").read_bytes() == first
    assert [part.name for part in made.parts_of("train")] == [part_name(i) for i in range(3)]
    assert made.parts_of("test") == []


@pytest.mark.parametrize(
    "keys",
    [
        ("config", "k"), ("identity", "source"), ("totals", "rows"), ("stats", "mass"), ("parts", 0, "sha256"),
        ("parts", 0, "split"), ("parts", 1, "rows"), ("parts", 2, "name"), ("digest",),
    ],
)  # fmt: skip
def test_an_edited_manifest_is_refused(tmp_path: Path, keys: tuple[Any, ...]) -> None:
    write_manifest(str(tmp_path), manifest())
    path = tmp_path / "manifest.json"
    raw = node = json.loads(path.read_text())
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = node[keys[-1]] + 1 if isinstance(node[keys[-1]], int | float) else "edited"
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="edited"):
        read_manifest(str(tmp_path), "logits", "precompute")


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "{}", '{"digest": "x", "parts": [{}]}'])
def test_an_unreadable_manifest_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(str(tmp_path), "logits", "precompute")


def test_other_kinds_versions_and_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fusionx precompute"):
        read_manifest(str(tmp_path), "logits", "precompute")
    write_manifest(str(tmp_path), manifest())
    with pytest.raises(DataError, match="another kind"):
        read_manifest(str(tmp_path), "tokens", "align")


def test_the_digest_follows_config_identity_and_parts() -> None:
    base = manifest()
    others = [
        build_manifest("tokens", base.config, base.identity, base.parts),
        build_manifest("logits", {"k": 4}, base.identity, base.parts),
        build_manifest("logits", base.config, {"source": "b"}, base.parts),
        build_manifest("logits", base.config, base.identity, base.parts[:2]),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 5


def test_a_listed_part_is_verified_against_its_hash(tmp_path: Path) -> None:
    listed = write(tmp_path / part_name(0))
    verify_part(str(tmp_path), listed, "precompute")
    path = tmp_path / part_name(0)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="differs from its manifest"):
        verify_part(str(tmp_path), listed, "precompute")
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        verify_part(str(tmp_path), listed, "precompute")


def test_weights_identity_follows_weights_and_config_not_the_place(tmp_path: Path) -> None:
    def folder(name: str, weights: bytes, config: str = "{}") -> str:
        made = tmp_path / name
        made.mkdir()
        (made / "config.json").write_text(config)
        (made / "model.safetensors").write_bytes(weights)
        (made / "README.md").write_text(name)
        return weights_identity(str(made))

    data = bytes(range(256)) * 4000
    changed = bytearray(data)
    changed[0] ^= 1
    base = folder("a", data)
    assert folder("b", data) == base
    assert len({base, folder("c", data + b"x"), folder("d", bytes(changed)), folder("e", data, '{"x": 1}')}) == 4
