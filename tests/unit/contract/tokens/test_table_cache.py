"""A large tokenizer's table is read once per machine: what is kept is what was read, and never another's."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_builder import MAKERS, made

from fusionx.benchmarks.documents.texts import document
from fusionx.contract.errors import ConfigError
from fusionx.contract.files.cache import cache_folder
from fusionx.contract.tokens import encoder, table_cache
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.encoding import valid_text
from fusionx.contract.tokens.table_cache import Known, cache_file, keep, kept
from fusionx.contract.tokens.token_table import TokenTable
from fusionx.precompute.chunks.corpus_findings import special_spellings

TEXTS = ["The quick brown fox: naïve 你好", "<s>def add(left, right):\n", ""]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(table_cache, "_SMALL", 0)
    return cache_folder("tokens")


@pytest.fixture
def folder(tmp_path: Path, make_tokenizer: Any) -> Path:
    """A model's folder, whose head knows all but ten of the tokenizer's ids."""
    make_tokenizer(tmp_path / "model", 300, bos=True)
    (tmp_path / "model" / "config.json").write_text(json.dumps({"vocab_size": 290}))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "model"


def read(folder: Path) -> Encoder:
    """As another process would."""
    encoder.load_encoder.cache_clear()
    return encoder.load_encoder(str(folder))


def never(*_: Any) -> Any:
    raise AssertionError("the tokenizer was loaded")


def test_what_is_kept_is_what_was_read(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(folder)
    assert sorted("".join(file.suffixes) for file in cache.iterdir()) == [".json", ".tokenizer.json"]
    monkeypatch.setattr(encoder, "load_tokenizer", never)
    again = read(folder)
    assert (again.table, again.add_bos, again.head_size) == (first.table, True, 290)
    assert (again.fingerprint, again.vocab_size) == (first.fingerprint, 290)
    with pytest.raises(AssertionError, match="was loaded"):
        _ = again.tokenizer
    for each in (again, pickle.loads(pickle.dumps(read(folder))), pickle.loads(pickle.dumps(again))):  # to a worker
        assert_alike(each, first)
    assert special_spellings([again]) == special_spellings([first]) > set()


def assert_alike(one: Encoder, other: Encoder, texts: Sequence[str] = TEXTS) -> None:
    assert one.bos == other.bos
    assert one.count(texts) == other.count(texts)
    for found, expected in zip(one.encode(texts), other.encode(texts), strict=True):
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.ends.tolist() == expected.ends.tolist()
        assert found.lossy == expected.lossy


def test_a_worker_elsewhere_reads_the_tokenizer(folder: Path, cache: Path) -> None:
    first = read(folder)
    sent = pickle.dumps(read(folder))
    shutil.rmtree(cache)
    assert_alike(pickle.loads(sent), first)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "slow-sentencepiece"])
def test_what_is_kept_reads_hostile_texts_as_the_tokenizer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(name)[0].save_pretrained(tmp_path / name)
    first = read(tmp_path / name)
    monkeypatch.setattr(encoder, "load_tokenizer", never)
    hostile = [document(7, number).text for number in range(300)]
    assert_alike(read(tmp_path / name), first, [*TEXTS, *filter(valid_text, hostile)])


def test_what_is_kept_is_read_without_transformers_and_torch(folder: Path, cache: Path) -> None:
    read(folder)
    program = f"""
import sys
from fusionx.contract.tokens import table_cache
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.precompute.chunks.chunker import chunker_of
table_cache._SMALL = 0
print("".join(chunker_of([load_encoder({str(folder)!r})], 8).cut("A text that is cut into pieces.")))
print([name for name in ("transformers", "torch") if name in sys.modules])
"""
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == ["A text that is cut into pieces.", "[]"]


PIECES = st.one_of(st.none(), st.binary(max_size=6))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(PIECES, max_size=20),
    roles=st.dictionaries(st.integers(0, 99), st.sampled_from(["eos", "special"])),
    ids=st.frozensets(st.integers(0, 99)),
    components=st.one_of(st.none(), st.dictionaries(st.text(), JSON, max_size=3)),
    add_bos=st.booleans(),
    head_size=st.one_of(st.none(), st.integers(1, 99)),
)
def test_any_table_comes_back_as_it_was(
    cache: Path,
    pieces: list[bytes | None],
    roles: dict[int, str],
    ids: frozenset[int],
    components: dict[str, Any] | None,
    add_bos: bool,
    head_size: int | None,
) -> None:
    table = TokenTable(pieces, roles, ids, "0123456789abcdef", frozenset(id + 1 for id in ids), components)
    known = Known(table, add_bos, head_size)
    keep(cache / "any.json", known)
    assert kept(cache / "any.json") == known


def test_every_file_beside_the_weights_counts(folder: Path) -> None:
    before = cache_file(str(folder), None)
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert cache_file(str(folder), None) == before
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole + b"\n")
        assert cache_file(str(folder), None) != before, name
        (folder / name).write_bytes(whole)
    assert cache_file(str(folder), None) == before
    (folder / "added_tokens.json").write_text("{}")
    assert cache_file(str(folder), None) != before


def test_a_tokenizer_that_changed_is_read_anew(folder: Path, make_tokenizer: Any, cache: Path) -> None:
    former = read(folder)
    make_tokenizer(folder, 400, bos=True)
    changed = read(folder)
    assert changed.fingerprint != former.fingerprint
    assert changed.table.size == 400
    assert len(list(cache.iterdir())) == 4


def test_another_version_of_a_reader_reads_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_file(str(folder), None)
    monkeypatch.setattr(table_cache, "_readers", lambda: ["6.0.0"])
    assert cache_file(str(folder), None) != before


def test_damage_is_said_and_made_good(folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = read(folder)
    changes = ((b'"add_bos": true', b'"add_bos": false'), (b'"content":"<s>"', b'"content":"<S>"'))
    for file, change in zip(sorted(cache.iterdir()), changes, strict=True):
        good = file.read_bytes()
        file.write_bytes(good.replace(*change))
        assert file.read_bytes() != good
        again = read(folder)
        assert again.add_bos
        assert again.table == whole.table
        assert file.name in capsys.readouterr().err
        assert file.read_bytes() == good


def test_what_cannot_be_kept_is_read_each_time(folder: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    assert read(folder).table == read(folder).table


def test_a_small_one_is_not_kept(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_cache, "_SMALL", 1 << 15)
    read(folder)
    assert not cache.exists()


def test_a_folder_with_something_huge_is_not_hashed(folder: Path) -> None:
    with (folder / "log.txt").open("wb") as file:
        file.truncate((1 << 28) + 1)
    assert cache_file(str(folder), None) is None


def test_of_the_hub_only_a_commit_is_one_and_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, hub = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hub"
    shutil.copytree(folder, hub / "models--owner--name" / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    assert cache_file("owner/name", commit) == cache_file(str(folder), None)
    assert cache_file("owner/name", None) is None
    assert cache_file("owner/name", "main") is None
    assert cache_file("owner/name", commit[::-1]) is None


def test_no_tokenizer_is_the_error_that_it_was(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read(tmp_path)
