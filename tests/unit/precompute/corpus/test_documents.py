"""Corpus readers: every format, every naming convention, and errors that name the place."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.storage import write_bytes
from fusionx.precompute.config import CorpusConfig
from fusionx.precompute.corpus.documents import Document, SplitReader, read_corpus
from fusionx.precompute.corpus.files import check_corpus

ROWS = [{"text": f"text {i}", "meta": {"set": "ab"[i % 2]}} for i in range(6)]


def read(path: Path, **options: Any) -> list[Document]:
    return list(read_corpus(CorpusConfig(path=str(path), **options)))


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write_corpus(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(jsonl(rows)))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(jsonl(rows)))
    else:
        path.write_bytes(jsonl(rows))
    return path


TABLES = ["c.parquet", "c.jsonl", "c.jsonl.gz", "c.jsonl.zst", "c.json", "c.json.gz"]


@pytest.mark.parametrize("name", TABLES)
def test_every_table_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    file = write_corpus(tmp_path / name)
    expected = [Document(i, "train", "ab"[i % 2], f"text {i}") for i in range(6)]
    assert read(file, domain="meta.set") == expected
    assert read(tmp_path, domain="meta.set") == expected
    assert {document.domain for document in read(file)} == {"all"}


@pytest.mark.parametrize(("name", "compress"), [("c.jsonl.zst", zstandard.compress), ("c.jsonl.gz", gzip.compress)])
def test_a_compressed_file_of_several_frames_is_read_to_its_end(tmp_path: Path, name: str, compress: Any) -> None:
    (tmp_path / name).write_bytes(b"".join(compress(jsonl([row])) for row in ROWS))
    assert len(read(tmp_path)) == 6


def test_corpora_are_found_behind_home_and_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read(write_corpus(tmp_path / "set" / "train" / "c.jsonl").parent.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_bytes("memory://corpus/set/train/c.jsonl", jsonl(ROWS))
    for path in ("~/set", f"file://{tmp_path}/set", "memory://corpus/set", "memory://corpus/set/train/c.jsonl"):
        check_corpus(CorpusConfig(path=path))
        assert list(read_corpus(CorpusConfig(path=path))) == expected
    with pytest.raises(ConfigError, match="memory://corpus/none"):
        check_corpus(CorpusConfig(path="memory://corpus/none"))


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl"])
@pytest.mark.parametrize(
    "meta",
    [{"set": "a", "n": None}, '{"set": "a", "n": null}', "{'set': 'a', 'n': None}", {"set": None}, '{"set": null}'],
)
def test_a_nested_domain_may_stand_in_an_object_or_in_its_text(tmp_path: Path, name: str, meta: object) -> None:
    """The Pile's `meta`, in the ways its copies have it."""
    file = write_corpus(tmp_path / name, [{"text": "x", "meta": meta}])
    named = meta["set"] if isinstance(meta, dict) else "a" if "'a'" in meta or '"a"' in meta else None
    assert [document.domain for document in read(file, domain="meta.set")] == [named or "unknown"]


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl"])
def test_a_column_with_a_dot_in_its_name_is_a_domain_too(tmp_path: Path, name: str) -> None:
    file = write_corpus(tmp_path / name, [{"text": "x", "meta.set": "a"}])
    assert [document.domain for document in read(file, domain="meta.set")] == ["a"]


@pytest.mark.parametrize("meta", ["no object", "[1]", "3", "(" * 5000])
def test_a_text_that_is_no_object_has_no_domain_in_it(tmp_path: Path, meta: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.jsonl:1"):
        read(write_corpus(tmp_path / "c.jsonl", [{"text": "x", "meta": meta}]), domain="meta.set")


def test_what_describes_a_corpus_is_no_document(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c.jsonl")
    for name in ("README.md", "dataset_info.json", ".cache/train.jsonl", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no document")
    assert len(read(tmp_path)) == 6


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(ROWS))
    assert len(read(tmp_path)) == 6


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    file = write_corpus(tmp_path / "c.jsonl")
    documents = SplitReader(CorpusConfig(path=str(tmp_path)), "train")
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"c\.jsonl"):
        list(documents)


@pytest.mark.parametrize("name", TABLES)
def test_the_share_of_a_split_that_was_read_tells_how_much_there_is(tmp_path: Path, name: str) -> None:
    draw = random.Random(0)
    texts = [draw.randbytes(1000).hex() for _ in range(6000)]  # a compressed file is unpacked some 64 KB ahead
    for start in (0, 3000):
        write_corpus(tmp_path / str(start) / name, [{"text": text} for text in texts[start : start + 3000]])
    documents = SplitReader(CorpusConfig(path=str(tmp_path)), "train")
    assert documents.share == 0
    for number, (text, _) in enumerate(documents):
        assert text == texts[number]
        assert documents.share is not None
        if number in (999, 4000):
            assert (number + 1) / documents.share == pytest.approx(6000, rel=0.1)
    assert documents.share == 1


def test_a_limit_counts_in_the_share(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c.parquet")
    shares = {}
    for limit in (2, 4, 100):
        documents = SplitReader(CorpusConfig(path=str(tmp_path), limit={"train": limit}), "train")
        next(iter(documents))
        shares[limit] = documents.share
    assert shares == {2: 1 / 2, 4: 1 / 4, 100: 1 / 6}


def test_only_the_front_of_a_long_file_is_held(tmp_path: Path) -> None:
    rows = [{"text": hashlib.sha512(str(i).encode()).hexdigest() * 100} for i in range(3000)]
    file = write_corpus(tmp_path / "c.jsonl.zst", [{"text": row["text"][:12000]} for row in rows])
    file.write_bytes(file.read_bytes() * 40)  # many frames: 1.4 GB of text
    documents = SplitReader(CorpusConfig(path=str(tmp_path)), "train")
    for _ in zip(range(1000), documents, strict=False):
        pass
    assert documents.share is not None
    assert 0 < documents.share < 0.05


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl.gz", "c.jsonl.zst"])
def test_a_file_cut_short_is_an_error(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"{i} {i * 7919 % 1000}" * 9} for i in range(2000)]
    file = write_corpus(tmp_path / name, rows)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=name):
        read(file)


def test_text_files_keep_every_character_and_belong_to_their_folder(tmp_path: Path) -> None:
    for name, data in (("prose/a.txt", b"one\r\ntwo\n"), ("notes/b.md", b"\xef\xbb\xbfx\xff"), ("notes/c.bin", b"z")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = {(document.domain, document.text) for document in read(tmp_path)}
    assert found == {("prose", "one\r\ntwo\n"), ("notes", "\ufeffx\udcff")}


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("data/train-0.parquet", "data/validation_0.parquet", "data/test.0.parquet"),
        ("train/a.jsonl", "validation/a.jsonl", "test/a.jsonl"),
        ("train/a.jsonl.zst", "val.jsonl.zst", "test.jsonl.zst"),
        ("train/x.jsonl", "dev.jsonl", "test.jsonl"),
        ("training.jsonl", "valid/a.jsonl", "testing.jsonl"),
        ("training_set/a.jsonl", "evaluate/valid.jsonl", "eval.jsonl"),
        ("Train0.JSONL", "VAL.jsonl", "evaluation.jsonl"),
    ],
)
def test_splits_follow_names_of_files_and_folders(tmp_path: Path, names: tuple[str, ...]) -> None:
    for split, name in zip(("train", "validation", "test"), names, strict=True):
        write_corpus(tmp_path / name, [{"text": split}])
    documents = read(tmp_path)
    assert [document.text for document in documents] == [document.split for document in documents]
    assert [document.doc_id for document in documents] == [0, 1, 2]
    assert [document.split for document in read(tmp_path, splits=["test"])] == ["test"]


def test_a_word_that_only_begins_like_a_split_is_none(tmp_path: Path) -> None:
    for name in ("trained.jsonl", "testify.jsonl", "developers.jsonl"):
        write_corpus(tmp_path / name, [{"text": name}])
    assert {document.split for document in read(tmp_path)} == {"train"}


def test_holdout_is_deterministic_disjoint_and_by_text(tmp_path: Path) -> None:
    rows = [{"text": f"document {i}"} for i in range(3000)] * 2
    write_corpus(tmp_path / "c.jsonl", rows)
    holdout = {"validation": 0.1, "test": 0.2}
    first, again = (read(tmp_path, holdout=holdout) for _ in range(2))
    assert first == again
    splits: dict[str, set[str]] = {}
    for document in first:
        splits.setdefault(document.text, set()).add(document.split)
    assert all(len(found) == 1 for found in splits.values()), "one text stands in two splits"
    shares = Counter(document.split for document in first)
    assert shares["validation"] == pytest.approx(600, rel=0.2)
    assert shares["test"] == pytest.approx(1200, rel=0.2)
    # A document's split does not depend on what else is in the corpus.
    write_corpus(tmp_path / "c.jsonl", rows[1000:1100])
    assert all(splits[document.text] == {document.split} for document in read(tmp_path, holdout=holdout))


def test_limit_counts_per_split(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_corpus(tmp_path / f"{split}.jsonl")
    assert Counter(d.split for d in read(tmp_path, limit={"train": 2})) == {"train": 2, "validation": 6}
    assert Counter(d.split for d in read(tmp_path, limit={"train": 0})) == {"validation": 6}


@pytest.mark.parametrize(
    ("options", "said"),
    [({"text": "body"}, "body"), ({"domain": "meta.name"}, r"meta\.name"), ({"domain": "text.x"}, r"text\.x")],
)
@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl"])
def test_a_missing_column_names_what_is_there(tmp_path: Path, options: dict[str, str], said: str, name: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read(write_corpus(tmp_path / name), **options)
    assert "text" in caught.value.details["found"]


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl"])
def test_a_column_without_text_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.text"):
        read(write_corpus(tmp_path / name, [{"text": 3}]))


def test_missing_and_empty_corpora_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(ConfigError, match=str(missing)):
        check_corpus(CorpusConfig(path=str(missing)))
    with pytest.raises(ConfigError, match=str(missing)):
        read(missing)
    with pytest.raises(DataError, match="no file that can be read"):
        read(tmp_path)
    (tmp_path / "c.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="corpus is empty"):
        read(tmp_path)


@pytest.mark.parametrize("line", [b"{", b"[1]", b"3", b'"x"'])
def test_a_line_that_is_no_object_is_named_by_number(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "a"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=r"c\.jsonl:3") as caught:
        read(tmp_path)
    assert {"found", "expected", "remedy"} <= set(caught.value.details)


def test_a_json_file_that_is_one_list_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(ROWS, indent=1))
    with pytest.raises(DataError, match=r"c\.json:1") as caught:
        read(tmp_path)
    assert "line of its own" in caught.value.details["remedy"]


def test_bytes_that_are_no_text_come_out_as_lone_surrogates_not_as_a_crash(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\xff"}\n{"text": "\\ud800"}\n{"text": null}\n')
    bad = pa.array([b"ok", b"\xc3", None], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, bad.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "b.parquet")
    assert [document.text for document in read(tmp_path)] == ["a\udcff", "\ud800", "", "ok", "\udcc3", ""]


def test_exactly_one_place_and_sensible_holdouts() -> None:
    wrong: list[dict[str, Any]] = [{}, {"path": "a", "dataset": "b"}]
    wrong += [{"path": "a", "holdout": {"test": share}} for share in (0.0, 1.0)]
    for options in wrong:
        with pytest.raises(ValueError, match=r"exactly one|holdout"):
            CorpusConfig(**options)


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split in ("train", "validation"):
        write_corpus(tmp_path / "set" / f"{split}.parquet", [{**row, "text": f"{split} {row['text']}"} for row in ROWS])
    return tmp_path / "set"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_is_read_through_datasets(hub_folder: Path, streaming: bool) -> None:
    pytest.importorskip("datasets")
    options: dict[str, Any] = {"dataset": str(hub_folder), "domain": "meta.set", "streaming": streaming}
    config = CorpusConfig(**options, splits=["train", "validation"], limit={"train": 4})
    documents = list(read_corpus(config))
    assert [d.split for d in documents] == ["train"] * 4 + ["validation"] * 6
    assert documents[1] == Document(1, "train", "b", "train text 1")
    with pytest.raises(ConfigError, match=r"\[test\]"):
        list(read_corpus(CorpusConfig(**options)))
    with pytest.raises(ConfigError, match="nobody/nothing"):
        list(read_corpus(CorpusConfig(dataset="nobody/nothing")))


def stub_of_datasets(monkeypatch: pytest.MonkeyPatch, rows: Any, splits: Any) -> None:
    class Stub:
        info = SimpleNamespace(splits=splits)

        def __iter__(self) -> Iterator[dict[str, str]]:
            return iter(rows())

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: Stub()))


def test_the_hub_says_how_many_documents_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for splits, expected in (({"train": SimpleNamespace(num_examples=6)}, [1 / 6, 2 / 6]), (None, [None, None])):
        stub_of_datasets(monkeypatch, lambda: ROWS, splits)
        documents = SplitReader(CorpusConfig(dataset="a/b"), "train")
        iterator = iter(documents)
        shares = [(next(iterator), documents.share)[1] for _ in range(2)]
        assert shares == expected
        assert len(list(iterator)) == 4
        assert documents.share == 1


def test_a_data_set_that_breaks_off_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield from [{"text": "a"}] * 2
        raise RuntimeError("connection closed")

    stub_of_datasets(monkeypatch, rows, None)
    with pytest.raises(DataError, match=r"a/b \[train\], after row 2") as caught:
        list(read_corpus(CorpusConfig(dataset="a/b")))
    assert caught.value.details["found"] == "connection closed"


def test_without_the_package_datasets_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="install datasets"):
        list(read_corpus(CorpusConfig(dataset="a/b")))
