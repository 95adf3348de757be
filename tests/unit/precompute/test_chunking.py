"""Cutting documents: nothing lost, everything fits, cuts where a reader would cut."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.encoder import load_encoder
from precompute.chunking import Ends, _inside_grapheme, cut_document


def characters(text: str) -> np.ndarray:
    """One token per character."""
    return np.cumsum([len(char.encode()) for char in text]).astype(np.int32)


def words(text: str) -> np.ndarray:
    """BOS and one token per word with the space before it; longer words in pieces of seven bytes, inside characters."""
    ends, data, start = [0], text.encode(), 0
    for place in range(1, len(data) + 1):
        if place == len(data) or data[place : place + 1] == b" " or place - start == 7:
            ends.append(place)
            start = place
    return np.array(ends, np.int32)


def one_end(text: str) -> np.ndarray:
    """A tokenizer that knows nothing of where its tokens end: all of them have the text's end (lossy texts)."""
    return np.full(len(text), len(text.encode()), np.int32)


@pytest.fixture(scope="module")
def real(make_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Ends]:
    """Two byte-level tokenizers of different vocabularies, one with BOS, one whose merges cross words."""
    root = tmp_path_factory.mktemp("tokenizers")
    folders = [make_tokenizer(root / "a", 300, bos=True), make_tokenizer(root / "b", 420, words=False)]

    def ends_of(folder: Path) -> Ends:
        encoder = load_encoder(str(folder))
        return lambda text: encoder.encode([text])[0].ends

    return [ends_of(folder) for folder in folders]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=400) | st.text(
    st.sampled_from("ab \n\u0301\u200d\ufe0f👩🏽🇩🇪é你한\r\0"), max_size=400
)


def check(text: str, tokenizers: list[Ends], block: int) -> list[str]:
    chunks = cut_document(text, tokenizers, block)
    assert "".join(chunks) == text
    assert all(chunks)
    for chunk in chunks:
        for ends in tokenizers:
            assert len(ends(chunk)) <= block, chunk
    return chunks


@given(ANY_TEXT, st.integers(16, 64))
@settings(max_examples=150, deadline=None)
def test_any_text_is_kept_whole_and_fits_under_every_tokenizer(text: str, block: int) -> None:
    check(text, [characters, words, one_end], block)


@given(ANY_TEXT, st.integers(16, 64))
@settings(max_examples=60, deadline=None)
def test_the_same_under_real_tokenizers(real: list[Ends], text: str, block: int) -> None:
    check(text, real, block)


@given(st.lists(st.sampled_from(["e\u0301", "👩‍👩‍👧", "👍🏽", "🇩🇪", "नि", "a", "한", "\r\n", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]), max_size=80))
@settings(max_examples=80, deadline=None)
def test_no_cut_parts_what_people_see_as_one_character(parts: list[str]) -> None:
    text = "".join(parts)
    borders = set(np.cumsum([len(part) for part in parts]).tolist())
    cut = 0
    for chunk in check(text, [characters], 16):
        cut += len(chunk)
        assert cut in borders


def test_one_grapheme_longer_than_the_block_is_cut_between_code_points() -> None:
    check("a" + "\u0301" * 100, [characters], 16)


def test_a_character_that_cannot_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        cut_document("你", [lambda text: np.zeros(20 * len(text), np.int32)], 16)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a" * 24 + "\n\n" + "b" * 3 + "\n" + "c c" * 40, "a" * 24 + "\n\n"),
        ("a" * 24 + "\n" + "b b" * 40, "a" * 24 + "\n"),
        ("a" * 26 + " " + "b" * 90, "a" * 26),
        ("a\n\n" + "b" * 23 + " " + "c" * 90, "a\n\n" + "b" * 23),  # a paragraph that fills too little does not count
        ("a" * 90, "a" * 32),
    ],
)
def test_a_cut_prefers_paragraph_then_line_then_word(text: str, first: str) -> None:
    assert check(text, [characters], 32)[0] == first


def test_a_text_that_fits_is_one_chunk() -> None:
    text = "one two\n\nthree"
    assert cut_document(text, [characters], len(text)) == [text]
    assert cut_document("", [characters], 16) == []


def test_a_megabyte_without_a_space_is_cut_in_reasonable_time(real: list[Ends]) -> None:
    started = time.monotonic()
    chunks = check("x7é" * 262_144, real[:1], 2048)
    assert len(chunks) > 100
    assert time.monotonic() - started < 30


def test_tokenizers_that_normalise_do_not_break_the_promise() -> None:
    def nfkd(text: str) -> np.ndarray:
        """As a lossy tokenizer: one token per character of the decomposed text, ends by its origin."""
        ends, place = [], 0
        for char in text:
            place += len(char.encode())
            ends += [place] * len(unicodedata.normalize("NFKD", char))
        return np.array(ends, np.int32)

    check("ﷺ" * 50 + "ﬁn ½ Å" * 30, [nfkd, characters], 24)


@pytest.mark.parametrize(
    ("piece", "cut", "inside"), [("🇩🇪🇫🇷", 2, False), ("🇩🇪🇫🇷", 3, True), ("ab", 1, False), ("a", 1, False)]
)
def test_flags_are_pairs(piece: str, cut: int, inside: bool) -> None:
    assert _inside_grapheme(piece, cut) is inside
