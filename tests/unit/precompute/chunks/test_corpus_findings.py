"""What is said of a corpus once it is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusionx.contract.errors import DataError
from fusionx.contract.shards.manifest import Manifest, build_manifest
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.chunks.corpus_findings import corpus_findings, why_skipped
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    folder: Path = make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 300, bos=True)
    return folder


def chunked(tokenizer: Path, folder: Path) -> Manifest:
    models = [ModelConfig(id="m", path=str(tokenizer))]
    stage = ChunkStage(
        CorpusConfig(path=str(folder / "corpus")), ChunkConfig(block_size=64), models, str(folder / "out")
    )
    return build_manifest("chunks", {}, {}, list(map(stage.worker(), stage.units())))


def test_what_is_left_out_is_said_with_number_and_reason(tokenizer: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [{"text": text} for text in ("good", "", None, "\ud800", *[""] * 6)]
    (corpus / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (corpus / "b.csv").write_text("text\nx\n")
    assert corpus_findings(chunked(tokenizer, tmp_path)) == [
        "files of the corpus that are not read (not .parquet, .jsonl, .ndjson, .json, .txt, .text, .md): 1, b.csv",
        "documents that are left out (empty): 8 of 10, numbers 1, 2, 4, 5, 6 and 3 more",
        "documents that are left out (lone surrogate): 1 of 10, numbers 3",
    ]


def test_a_corpus_of_which_nothing_is_left_is_an_error(tokenizer: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_bytes("naïve café".encode("latin1"))
    with pytest.raises(DataError, match=r"(?s)Nothing is left.*left out \(not UTF-8\): 1 of 1.*iconv"):
        corpus_findings(chunked(tokenizer, tmp_path))


def test_text_that_spells_special_tokens_is_counted(tokenizer: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(25):
        (corpus / f"{number}.txt").write_text("<s>hello<eos> <b>bold</b>\n<s>bye<eos>")
    manifest = chunked(tokenizer, tmp_path)
    assert manifest.stats["special_tokens"] == {"<s>": 50, "<eos>": 50}
    (line,) = corpus_findings(manifest)
    assert line.startswith("the text spells special tokens (<eos> 50 times, <s> 50 times); they are read as the ch")


def test_why_a_document_cannot_be_cut() -> None:
    found = [why_skipped(text) for text in ("ok", "", "a\udcff", "a\ud800", "\udcff\ud800")]
    assert found == [None, "empty", "not UTF-8", "lone surrogate", "lone surrogate"]
