"""Beginnings of held-out documents, and what a model writes after them: token by token, as by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionx.eval.models.loaded_model import load_model
from fusionx.eval.text.continuations import NEW_TOKENS, beginnings, continuations


def chunk_of(domain: str, doc_id: int, text: str, **others: Any) -> dict[str, Any]:
    return {"domain": domain, "doc_id": doc_id, "chunk": 0, "text": text, **others}


@given(st.text(alphabet="ab \n", max_size=900))
def test_a_document_is_cut_behind_a_word_and_nothing_is_lost(text: str) -> None:
    found = beginnings([chunk_of("d", 1, text)], 1)
    middle = min(len(text) // 2, 280)
    ends = [place for place in range(1, middle + 1) if text[place].isspace() and not text[place - 1].isspace()]
    if not ends or not text[ends[-1] : ends[-1] + 200].strip():
        assert found == []
        return
    (one,) = found
    assert one.prompt == text[: ends[-1]]
    assert one.text == text[ends[-1] :][:200]


def test_domains_are_spread_and_of_each_the_first_document_counts() -> None:
    chunks = [chunk_of(f"d{place % 6}", 100 - place, f"words of {place} and more") for place in range(24)]
    chunks.append(chunk_of("d0", 1, "of a later chunk, not the first", chunk=1))
    chunks.append(chunk_of("d0", 2, "nothing"))
    found = beginnings(chunks, 3)
    assert [one.domain for one in found] == ["d0", "d2", "d4"]
    assert [one.doc_id for one in found] == [100 - 18, 100 - 20, 100 - 22]
    assert found == beginnings(chunks[::-1], 3)
    assert len(beginnings(chunks, 50)) == 6
    assert beginnings(chunks, 0) == beginnings([], 3) == []
    assert beginnings([chunk_of("chat", 1, "[] and more words here", format="chat")], 3) == []


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_written_is_the_likeliest_token_again_and_again(
    name: str, model_folders: dict[str, Path], chunks: list[dict[str, Any]]
) -> None:
    import torch

    loaded = load_model(model_folders[name], "cpu")
    found = continuations(loaded, beginnings(chunks, 2), 4096)
    assert found
    for one in found:
        ids = [loaded.tokenizer.bos_token_id] * loaded.adds_bos
        ids += loaded.tokenizer(one["prompt"], add_special_tokens=False)["input_ids"]
        assert loaded.max_positions is None or len(ids) + NEW_TOKENS <= loaded.max_positions
        start = len(ids)
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                likeliest = int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(likeliest)
            if likeliest == loaded.tokenizer.eos_token_id:
                break
        assert one["written"] == loaded.tokenizer.decode(ids[start:], skip_special_tokens=True)
