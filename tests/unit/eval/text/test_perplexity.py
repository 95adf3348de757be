"""Held-out scores against a one-by-one loop, for models with and without BOS."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fusionx.contract.errors import DataError
from fusionx.eval.models.loaded_model import LoadedModel, load_model
from fusionx.eval.text.perplexity import aggregate, overall, score_chunks

NAMES = ["llama", "gpt2"]


def naive(loaded: LoadedModel, text: str) -> tuple[float, int, int]:
    """One token at a time, in fp64, from the tokenizer's own call; bytes by decoding the first token."""
    import torch

    ids = loaded.tokenizer(text)["input_ids"]
    total = 0.0
    for position in range(1, len(ids)):
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([ids[:position]])).logits[0, -1].double()
        total -= float(torch.log_softmax(logits, -1)[ids[position]])
    skipped = 0 if loaded.adds_bos else len(loaded.table.token_bytes[ids[0]] or b"")
    return total, len(ids) - 1, len(text.encode()) - skipped


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_a_naive_loop(name: str, model_folders: dict[str, Path], chunks: list[dict[str, Any]]) -> None:
    loaded = load_model(model_folders[name], device="cpu")
    assert loaded.adds_bos == (name == "llama")
    for score, chunk in zip(score_chunks(loaded, chunks, batch_tokens=100), chunks, strict=True):
        nll, tokens, count = naive(loaded, chunk["text"])
        assert (score.tokens, score.bytes) == (tokens, count)
        assert score.nll == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_batches_or_order(
    name: str, model_folders: dict[str, Path], chunks: list[dict[str, Any]]
) -> None:
    loaded = load_model(model_folders[name], device="cpu")
    alone = score_chunks(loaded, chunks, batch_tokens=1)
    together = score_chunks(loaded, chunks[::-1], batch_tokens=100_000)[::-1]
    for one, other in zip(alone, together, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-5)
        assert (one.tokens, one.bytes) == (other.tokens, other.bytes)


def test_without_bos_a_single_token_predicts_nothing(model_folders: dict[str, Path]) -> None:
    loaded = load_model(model_folders["gpt2"], device="cpu")
    chunk = {"domain": "d", "doc_id": 1, "text": "T"}
    (score,) = score_chunks(loaded, [chunk], 100)
    assert (score.nll, score.tokens, score.bytes) == (0.0, 0, 0)
    with pytest.raises(DataError, match="no token to predict"):
        aggregate([chunk], [score])


def test_aggregates_equal_sums(model_folders: dict[str, Path], chunks: list[dict[str, Any]]) -> None:
    loaded = load_model(model_folders["llama"], device="cpu")
    scores = score_chunks(loaded, chunks, 256)
    found = aggregate(chunks, scores)
    assert list(found.domains) == ["code", "english", "mixed"]
    for domain, figures in found.domains.items():
        mine = [(c, s) for c, s in zip(chunks, scores, strict=True) if c["domain"] == domain]
        nll, tokens, count = (sum(getattr(s, key) for _, s in mine) for key in ("nll", "tokens", "bytes"))
        assert figures["perplexity"] == pytest.approx(math.exp(nll / tokens))
        assert figures["bits_per_byte"] == pytest.approx(nll / math.log(2) / count)
        assert figures["n_chunks"] == len(mine)
        documents = sorted({c["doc_id"] for c, _ in mine})
        assert figures["n_docs"] == len(documents)
        per_document = [sum(s.nll for c, s in mine if c["doc_id"] == document) for document in documents]
        assert [nll for nll, _ in found.documents[domain]] == pytest.approx(per_document)
    whole = overall(found.domains)
    assert whole["bits_per_byte"] == pytest.approx(sum(f["bits_per_byte"] for f in found.domains.values()) / 3)
    assert whole["perplexity"] == pytest.approx(math.prod(f["perplexity"] for f in found.domains.values()) ** (1 / 3))
    assert whole["pooled"]["tokens"] == sum(score.tokens for score in scores)


@pytest.mark.parametrize(("text", "problem"), [("a \ud800 b", "not valid Unicode"), ("zyx" * 200, "longer than")])
def test_bad_chunks_are_named(text: str, problem: str, model_folders: dict[str, Path]) -> None:
    loaded = load_model(model_folders["llama"], device="cpu")
    with pytest.raises(DataError, match=problem) as error:
        score_chunks(loaded, [{"domain": "d", "doc_id": 17, "text": text}], 100)
    assert "17" in str(error.value)


def test_nan_is_an_error(model_folders: dict[str, Path]) -> None:
    loaded = load_model(model_folders["llama"], device="cpu")
    loaded.model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(DataError, match="not a finite number"):
        score_chunks(loaded, [{"domain": "d", "doc_id": 17, "text": "Quick"}], 100)
