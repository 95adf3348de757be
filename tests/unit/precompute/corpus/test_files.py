"""Which files of a corpus are read, and from which columns; what is not is named."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusionx.contract.errors import ConfigError, DataError
from fusionx.precompute.config import CorpusConfig
from fusionx.precompute.corpus.documents import Document, read_corpus
from fusionx.precompute.corpus.files import unread_files


def read(path: Path, **options: Any) -> list[Document]:
    return list(read_corpus(CorpusConfig(path=str(path), **options)))


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write_corpus(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(jsonl(rows))
    return path


def test_endings_in_any_case_and_every_usual_compression(tmp_path: Path) -> None:
    data = jsonl([{"text": "x"}])
    made = {"a.jsonl": data, "b.jsonl.xz": lzma.compress(data), "c.jsonl.bz2": bz2.compress(data), "d.ndjson": data}
    made |= {"E.JSONL": data, "F.Json.GZ": gzip.compress(data), "g.csv": b"text\nx\n", "README.md": b"about"}
    made |= {"h.parquet.gz": b""}
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    assert len(read(tmp_path)) == 6
    unread = unread_files(CorpusConfig(path=str(tmp_path)))
    assert sorted(unread.values()) == [["README.md"], ["g.csv", "h.parquet.gz"]]
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, content in (("a.txt", b"x"), ("b.txt.gz", gzip.compress(b"x")), ("c.text", b"x")):
        (texts / name).write_bytes(content)
    assert [document.text for document in read(texts)] == ["x"] * 3
    (texts / "d.txt.xz").write_bytes(lzma.compress(b"x" * 1000)[:-20])
    with pytest.raises(DataError, match="cannot be read to its end"):
        read(texts)


def test_files_of_no_split_beside_files_that_have_one_are_named(tmp_path: Path) -> None:
    for name in ("train.jsonl", "more.jsonl", "test.jsonl"):
        write_corpus(tmp_path / name, [{"text": name}])
    unread = unread_files(CorpusConfig(path=str(tmp_path), splits=["train"]))
    assert list(unread.values()) == [["more.jsonl"], ["test.jsonl"]]
    assert "no split's name" in next(iter(unread))


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl"])
def test_a_nested_field_may_hold_the_text(tmp_path: Path, name: str) -> None:
    write_corpus(tmp_path / name, [{"doc": {"text": "a", "kind": "k"}}, {"doc": {"text": None, "kind": "k"}}])
    found = read(tmp_path, text="doc.text", domain="doc.kind")
    assert [(document.text, document.domain) for document in found] == [("a", "k"), ("", "k")]
    with pytest.raises(ConfigError, match=r"doc\.body"):
        read(tmp_path, text="doc.body")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match="two columns of one name"):
        read(tmp_path)


def test_bytes_that_are_no_text_are_found_in_columns_of_every_kind(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xc3"], pa.binary()).buffers())
    codes = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1], pa.int32()), bad, safe=False)
    pq.write_table(pa.table({"text": codes, "set": codes}), tmp_path / "a.parquet")
    found = read(tmp_path, domain="set")
    assert [document.text for document in found] == ["\udcc3", "ok", "\udcc3"]
    assert [document.domain for document in found] == ["?", "ok", "?"]
    nested = pa.StructArray.from_arrays([bad, pa.array([1, 2])], names=["text", "n"])
    pq.write_table(pa.table({"doc": nested}), tmp_path / "a.parquet")
    assert [document.text for document in read(tmp_path, text="doc.text")] == ["ok", "\udcc3"]


def test_a_document_that_unpacks_to_more_than_memory_is_for_is_refused_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusionx.precompute.corpus.files._MOST_BYTES", 10_000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl([{"text": "x"}, {"text": "y" * 10_000}])))
    with pytest.raises(DataError, match=r"(?s)too large.*a\.jsonl\.gz:2"):
        read(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(bytes(10_001)))
    with pytest.raises(DataError, match=r"(?s)too large.*b\.txt\.xz"):
        read(tmp_path / "b.txt.xz")
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(bytes(10_000)))
    assert len(read(tmp_path / "b.txt.xz")[0].text) == 10_000


def test_a_parquet_file_with_checksums_is_held_to_them(tmp_path: Path) -> None:
    file, table = tmp_path / "a.parquet", pa.table({"text": ["the text of a document"] * 3})
    pq.write_table(table, file, write_page_checksum=True, compression="none", write_statistics=False)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"the text", b"the test", 1))
    with pytest.raises(DataError, match=r"cannot be read to its end"):
        read(file)
