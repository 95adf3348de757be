"""Hostile documents and damaged files: each is accounted for; and the trials themselves can fail."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fusionx.benchmarks.documents import figures, trials
from fusionx.benchmarks.documents.files import Trial, content_of, trial
from fusionx.benchmarks.documents.texts import KINDS, as_json_reads, document, why_lost
from fusionx.contract.errors import IncompleteError
from fusionx.precompute.chunks.chunk_stage import ChunkWorker
from fusionx.precompute.chunks.corpus_findings import why_skipped


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tokenizer: Any) -> dict[str, Callable[[], Any]]:
    from transformers import AutoTokenizer

    monkeypatch.setattr(trials, "FILE_ROWS", 20)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    def tokenizer(size: int, bos: bool) -> Any:
        return AutoTokenizer.from_pretrained(make_tokenizer(tmp_path / str(size), size, bos=bos))

    return {"one": partial(tokenizer, 300, False), "other": partial(tokenizer, 340, True)}


def test_every_document_and_file_is_accounted_for(small: dict[str, Callable[[], Any]]) -> None:
    sizes = {"documents": 140, "cut_only": 140, "files": 110, "word_kb": 4, "line_mb": 1}
    found = {(figure.case, figure.metric): figure.value for figure in figures(**sizes, tokenizers=small)}
    assert found["fuzzed", "tried"] == 280
    outcomes = [value for (case, metric), value in found.items() if case == "fuzzed" and metric.startswith("left out")]
    assert sum(outcomes) + found["fuzzed", "kept"] == 280
    assert len(outcomes) == 3, "each reason there is"
    assert found["cut short", "refused"] == found["cut short", "tried"] == 10


def test_a_document_that_is_lost_or_changed_is_told(
    small: dict[str, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = ChunkWorker.__call__

    def careless(worker: ChunkWorker, unit: Any) -> Any:
        del unit.payload[3:5]
        return cut(worker, unit)

    monkeypatch.setattr(ChunkWorker, "__call__", careless)
    with pytest.raises(IncompleteError):
        list(figures(documents=20, cut_only=0, files=0, word_kb=1, line_mb=1, tokenizers=small))
    said = capsys.readouterr().err
    assert "document 3 (combining marks) is not what it was" in said
    assert "the manifest counts" in said


def test_a_file_that_is_read_short_or_refused_without_its_name_is_told(tmp_path: Path) -> None:
    texts = ["a", "b", "c"]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content_of(".jsonl", texts[:2], ["all"] * 2, random.Random(0)))
    assert trials.judged(Trial("", path, "refused", path.name), texts) == ("read changed", "it is read changed")
    assert trials.judged(Trial("", path, "whole", path.name), texts[:2]) == ("read whole", "")
    path.write_bytes(b"{}\n")
    assert "does not name" in trials.judged(Trial("", path, "refused", "another name"), texts)[1]
    assert "a whole file is refused" in trials.judged(Trial("", path, "whole", path.name), texts)[1]


def test_fuzzing_is_repeatable_and_of_every_kind(tmp_path: Path) -> None:
    made = [document(5, number) for number in range(60)]
    assert made == [document(5, number) for number in range(60)]
    assert made != [document(6, number) for number in range(60)]
    assert {each.kind for each in made} == {*KINDS, "mixed"}
    for each in made:
        assert as_json_reads(each.text) == each.text
        assert why_lost(each.text) == why_skipped(each.text)
    names = {trial(tmp_path, number, ["a", "b"], random.Random(number)).kind for number in range(11)}
    assert len(names) == 11
