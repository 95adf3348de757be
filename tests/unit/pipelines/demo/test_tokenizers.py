"""All four tokenizers give every text back, and a saved one encodes as the trained one did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusionx.pipelines.demo import corpus, skills, tokenizers
from fusionx.pipelines.demo.config import TokenizerKind

SAMPLE = [
    Path(skills.__file__).read_text(),
    Path(corpus.__file__).read_text(),
    *skills.documents("counting", "train", 20_000, "0"),
    "Élan vital, naïveté, and some prose:\n\n\tindented by a tab\n        and by spaces.\n" * 3,
]
ODD = [
    "",
    " ",
    "   ",
    "a",
    " a",
    "  a\n\n\tb  ",
    "\n",
    "\r\n\r\n",
    "<0x41> is not A",
    "😀 é 日本語 \U0001f469‍\U0001f469",
    "def f(x):\n    return x  +  12345\n",
    "\x00\x07\x7f",
    "a\u00a0b\u2003c\u200bd",
    "#" * 300,
    "\u0628\u0646 \u05d0 \ufeff",
]
SPECIALS = {token for special in tokenizers.SPECIAL_TOKENS.values() for token in special.distinct()}


@pytest.fixture(scope="module", params=list(tokenizers.SPECIAL_TOKENS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """Kind, trained tokenizer, and the same loaded back by AutoTokenizer."""
    from transformers import AutoTokenizer

    trained = tokenizers.train_tokenizer(request.param, SAMPLE, 700)
    folder = tmp_path_factory.mktemp("tokenizer") / request.param
    tokenizers.save_tokenizer(trained, request.param, 256, folder)
    return request.param, trained, AutoTokenizer.from_pretrained(folder)


def gives_back(pair: tuple[str, Any, Any], text: str) -> None:
    _, trained, loaded = pair
    ids = loaded(text)["input_ids"]
    assert ids == trained.encode(text).ids
    assert loaded.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", list(tokenizers.SPECIAL_TOKENS))
def test_the_same_texts_give_the_same_tokenizer(kind: TokenizerKind) -> None:
    """Among 400 characters of one occurrence each there are ties for every decision that the trainers leave open."""
    texts = [*SAMPLE, " ".join(map(chr, range(0x4E00, 0x4E00 + 400)))]
    made = {tokenizers.train_tokenizer(kind, texts, 700).to_str() for _ in range(4)}
    assert len(made) == 1


@pytest.mark.parametrize("text", ODD + SAMPLE[:2])
def test_odd_texts_are_lossless(pair: tuple[str, Any, Any], text: str) -> None:
    gives_back(pair, text.replace(tokenizers.SPACE, "_"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[tokenizers.SPACE]), max_size=60))
def test_any_text_is_lossless(pair: tuple[str, Any, Any], text: str) -> None:
    if not any(special in text for special in SPECIALS):
        gives_back(pair, text)


def test_roles_are_defined(pair: tuple[str, Any, Any]) -> None:
    kind, _, loaded = pair
    special = tokenizers.SPECIAL_TOKENS[kind]
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token, loaded.unk_token) == tuple(special)
    assert len(loaded) == 700
    starts_with_bos = loaded("text")["input_ids"][0] == loaded.bos_token_id
    assert starts_with_bos == (kind in {"sentencepiece_bpe", "regex_byte_bpe"})
    assert tokenizers.encode_documents(loaded, ["text"])[0][-1] == loaded.eos_token_id


def test_single_digits(pair: tuple[str, Any, Any]) -> None:
    kind, _, loaded = pair
    if kind != "byte_bpe":
        pieces = loaded.tokenize("12 34 56 123456")
        assert all(sum(character.isdigit() for character in piece) <= 1 for piece in pieces)
