"""The real text: markup stripped, documents cut and dealt in the same way every time. Without a network."""

import io
import json
import random
import re
import zipfile
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest

from fusionx.contract.errors import DataError
from fusionx.pipelines.demo.corpus import Deduplicator
from fusionx.pipelines.real import text as real_text
from fusionx.pipelines.real.config import RealDomain
from fusionx.pipelines.real.packages import Package
from fusionx.pipelines.real.text import (
    AT_LEAST,
    AT_MOST,
    DOMAINS,
    SPLIT_BYTES,
    Source,
    deal,
    documents_of,
    plain,
    prose_documents,
)

PAGE = """
# Un titre assez long { #un-titre }

Un **paragraphe** avec [un lien](https://example.org/a_(b)) et du `code`,
sur deux *lignes*.

!!! note "Remarque"
    <abbr title="une abréviation">Une remarque</abbr> en dedans.

```Python hl_lines="1"
print("jamais ici")
```

* Le premier élément de la liste
* Le deuxième élément snake_case_name

<!-- un commentaire
sur deux lignes -->
![une image](image.png)
{!../../docs_src/tutorial.py!}
"""


def sentences(count: int, seed: int, end: str = ". ", space: str = " ") -> str:
    rng = random.Random(seed)
    words = (space.join(chr(97 + rng.randrange(26)) * rng.randrange(2, 9) for _ in range(12)) for _ in range(count))
    return "".join(word + end for word in words).strip()


def test_markup_is_stripped() -> None:
    assert plain(PAGE).split("\n\n") == [
        "Un titre assez long",
        "Un paragraphe avec un lien et du code, sur deux lignes.",
        "Une remarque en dedans.",
        "Le premier élément de la liste",
        "Le deuxième élément snake_case_name",
    ]


def test_prose_is_cut_between_sentences_and_nothing_is_added() -> None:
    text = "\n\n".join(sentences(20, seed) for seed in range(6))
    documents = list(prose_documents(text))
    assert len(documents) > 2
    assert all(AT_LEAST <= len(document.encode()) <= AT_MOST for document in documents)
    assert all(document.strip() in text and document.endswith(".\n") for document in documents)
    assert documents == list(prose_documents(text))


def test_chinese_is_cut_without_adding_spaces() -> None:
    text = "\n\n".join("“" + "。".join("中文句子" * 5 for _ in range(30)) + "。”" for _ in range(4))
    documents = list(prose_documents(text))
    assert documents
    assert all(document.strip() in text for document in documents)


def test_paragraphs_in_latin_letters_are_left_out_of_foreign_pages() -> None:
    page = "Это русский абзац про FastAPI.\n\nThis one was never translated.\n"
    assert list(real_text._foreign_pages(page.encode())) == ["Это русский абзац про FastAPI."]


def test_speeches_are_single_paragraphs_with_plain_punctuation() -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("de.csv", 'speaker,text\nA,"Frau Präsidentin !   Meine Damen _ ja _ und Herren ."\n')
    assert list(real_text._speeches(data.getvalue())) == ["Frau Präsidentin! Meine Damen – ja – und Herren."]


def test_documents_of_an_archive_are_the_same_every_time(tmp_path: Path) -> None:
    chapters = ["\n".join(sentences(30, 10 * chapter + line) for line in range(3)) for chapter in range(4)]
    with zipfile.ZipFile(tmp_path / "novel.whl", "w") as archive:
        archive.writestr("novel/a.json", json.dumps(chapters))
        archive.writestr("novel/again.json", json.dumps(chapters))
    source = Source(Package("novel", "1", ""), "none", r"novel/.*\.json", real_text._chapters, prose=True)
    found = documents_of(source, tmp_path / "novel.whl", Deduplicator(share=0.5))
    assert found == documents_of(source, tmp_path / "novel.whl", Deduplicator(share=0.5))
    assert len(found) == len(set(found)) > 4


def test_splits_are_filled_in_order_and_share_no_document() -> None:
    documents = [sentences(25, seed) + "\n" for seed in range(300)]
    dealt = deal("english", documents)
    assert dealt == deal("english", documents[::-1])
    for split, size in SPLIT_BYTES.items():
        held = sum(len(document.encode()) for document in dealt[split])
        assert size <= held < size + AT_MOST, split
    everything = [document for split in dealt.values() for document in split]
    assert len(everything) == len(set(everything))


def test_too_little_text_is_refused_by_domain_and_split() -> None:
    with pytest.raises(DataError, match="too little text") as caught:
        deal("dutch", [sentences(25, seed) for seed in range(20)])
    assert caught.value.details["field"] == "dutch"
    assert "for test" in caught.value.details["found"]


def test_the_corpus_is_made_once_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gathered = {
        name: [sentences(25, seed) + "\n" for seed in range(100 * at, 100 * at + 60)] for at, name in enumerate("ab")
    }
    calls = []
    monkeypatch.setattr(real_text, "_gather", lambda folder: calls.append(folder) or gathered)
    hashes = []
    for run in ("first", "second"):
        corpus = real_text.real_text(tmp_path / run)
        assert real_text.real_text(tmp_path / run) == corpus
        hashes.append([path.read_bytes() for path in sorted(corpus.iterdir())])
    assert len(calls) == 2
    assert hashes[0] == hashes[1]
    table = pq.read_table(corpus / "validation.parquet").to_pydict()
    assert set(table) == {"text", "domain"}
    assert set(table["domain"]) == {"a", "b"}


def test_every_source_is_pinned_and_says_its_licence() -> None:
    assert list(DOMAINS) == list(get_args(RealDomain))
    for sources in DOMAINS.values():
        for source in sources:
            assert re.fullmatch("[0-9a-f]{64}", source.package.sha256 or ""), source.package
            assert source.licence
