"""Gathering is deterministic, the splits are disjoint, and what should be absent is absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusionx.contract.errors import DataError
from fusionx.pipelines.demo import corpus
from fusionx.pipelines.demo.config import DemoCorpusConfig

CONFIG = DemoCorpusConfig(
    real_domains_kb={"cpp": 150, "stubs": 150, "licences": 120, "tables": 120},
    skills_kb={"boolean": 20, "sorting": 20},
    train_kb=4,
    validation_kb=4,
    test_kb=4,
    absent_from_train=["licences", "skill_sorting"],
)


@pytest.fixture(scope="module")
def made() -> dict[str, dict[str, list[str]]]:
    return corpus.make_corpus(CONFIG, seed=0)


def test_splits_are_disjoint_by_text(made: dict[str, dict[str, list[str]]]) -> None:
    for domain, pools in made.items():
        texts = [text for documents in pools.values() for text in documents]
        assert len(set(texts)) == len(texts), domain


def test_absent_domains_are_absent_from_training_only(made: dict[str, dict[str, list[str]]]) -> None:
    for domain, pools in made.items():
        assert bool(pools["train"]) == (domain not in CONFIG.absent_from_train)
        for split in ("validation", "test"):
            assert 4000 <= sum(len(text.encode()) for text in pools[split]) <= 4000 + CONFIG.max_document_bytes
        assert sum(map(len, pools["experts"])) > sum(map(len, pools["train"]))


def test_gathered_documents_are_bounded_and_written(made: dict[str, dict[str, list[str]]]) -> None:
    for domain in CONFIG.real_domains_kb:
        for text in (text for documents in made[domain].values() for text in documents):
            assert CONFIG.min_document_bytes <= len(text.encode()) <= CONFIG.max_document_bytes
            assert corpus.is_writing(text)


def test_same_installation_gives_the_same_corpus(made: dict[str, dict[str, list[str]]], tmp_path: Path) -> None:
    first = corpus.write_corpus(made, tmp_path / "first")
    again = corpus.write_corpus(corpus.make_corpus(CONFIG, seed=0), tmp_path / "again")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_no_file_of_this_project_is_gathered() -> None:
    checkout = Path(corpus.__file__).resolve().parents[2]
    environment = tuple(str(Path(corpus.sysconfig.get_path(name))) for name in ("purelib", "platlib", "stdlib"))
    for file in corpus.installed_files():
        assert str(file.path).startswith(environment) or not file.path.is_relative_to(checkout), file.path
        assert not file.package.startswith("fusionx"), file.path


def test_only_packages_that_the_project_pins_give_text() -> None:
    names = {name.lower().rpartition("-")[0] for name in corpus.installation()}
    assert {"torch", "numpy", "pytest", "mypy"} <= names
    assert not {"pip", "fusionx", "moto"} & names, "what else is installed must not change the demo"


def test_near_duplicates_are_dropped() -> None:
    words = [f"word{number}" for number in range(200)]
    new = corpus.Deduplicator(share=0.5)
    assert new.is_new(" ".join(words))
    assert not new.is_new("  ".join(words))
    assert not new.is_new(" ".join(["other", *words[:150]]))
    assert new.is_new(" ".join(reversed(words)))


def test_cut_keeps_lines_whole() -> None:
    text = "".join(f"line {number}\n" + "\n" * (number % 7 == 0) for number in range(300))
    pieces = list(corpus.cut(text, 100, 500))
    lines = set(text.splitlines(keepends=True))
    assert all(set(piece.splitlines(keepends=True)) <= lines for piece in pieces)
    assert sum(map(len, pieces)) > 0.9 * len(text)


def test_what_is_no_writing() -> None:
    assert not corpus.is_writing("x" * 600)
    assert not corpus.is_writing("deadbeef" * 8 + "\nfew words\n")
    assert corpus.is_writing("A line.\nAnother line of text.\n")


def test_too_little_text_is_named() -> None:
    with pytest.raises(DataError, match="too little text of domain 'cmake'"):
        corpus.deal("cmake", ["short\n"] * 3, CONFIG)
