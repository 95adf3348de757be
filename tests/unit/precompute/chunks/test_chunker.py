"""Cutting documents: nothing lost, everything fits, cuts where a reader would cut."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fusionx.contract.tokens.encoder import Encoder, load_encoder
from fusionx.contract.tokens.token_table import token_table
from fusionx.precompute.chunks import chunker as chunker_module
from fusionx.precompute.chunks import token_counter
from fusionx.precompute.chunks.chunker import Chunker, Ends, chunker_of
from fusionx.precompute.chunks.split_points import split_points
from fusionx.precompute.chunks.token_counter import PieceCounter


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


CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LINES = [
    "def add(left, right):\n    return left + right\n\nprint(add(1, 2))\n",
    "The  quick brown fox's 12345 jumps, doesn't it?\r\n\r\n\tIt does!  \n \nnaïve café (see: https://a.b/c_d).",
    "x = {'a': [1, 2], \"b\": None}  # привет мир, 你好世界 e\u0301 ≠ <= >=",
] * 20


def byte_level(pattern: str | None = None, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=options.get("prefix", False), use_regex=pattern is None)
    first = {
        None: [],
        "digits": [pre_tokenizers.Digits(individual_digits=True)],
    }.get(pattern, [pre_tokenizers.Split(Regex(str(pattern)), "isolated")])
    if pattern == "digits":
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, level]) if first else level
    tokenizer.decoder = decoders.ByteLevel()
    if options.get("nfc"):
        tokenizer.normalizer = normalizers.NFC()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def marked(prefix: str) -> Tokenizer:
    """As Llama-2 (a normalizer that prepends) or as newer conversions (Metaspace on the first word only)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prefix == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    words = [word for line in LINES for word in line.replace(" ", " ▁").split(" ")]
    tokenizer.train_from_iterator(words, trainer)
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] == "<unk>"
    state["added_tokens"] = state["added_tokens"][:1]
    return Tokenizer.from_str(json.dumps(state))


def encoder_of(tokenizer: Tokenizer) -> Encoder:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    return Encoder.of(fast, token_table(fast), add_bos=False)


COUNTABLE: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_level,
    "gpt2-prefix": lambda: byte_level(prefix=True),
    "neox": lambda: byte_level(nfc=True),
    "starcoder": lambda: byte_level("digits"),
    "cl100k": lambda: byte_level(CL100K),
    "o200k": lambda: byte_level(O200K),
    "cl100k-nfc": lambda: byte_level(CL100K, nfc=True),
    "llama2": lambda: marked("prepend"),
    "metaspace-first": lambda: marked("first"),
    "metaspace-always": lambda: marked("always"),
}


@pytest.fixture(scope="module")
def countable() -> dict[str, Encoder]:
    return {name: encoder_of(make()) for name, make in COUNTABLE.items()}


@pytest.fixture(scope="module")
def real(make_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Encoder]:
    """Two byte-level tokenizers of different vocabularies, one with BOS, one whose merges cross words."""
    root = tmp_path_factory.mktemp("tokenizers")
    folders = [make_tokenizer(root / "a", 300, bos=True), make_tokenizer(root / "b", 420, words=False)]
    return [load_encoder(str(folder)) for folder in folders]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=400) | st.text(
    st.sampled_from("ab \n\u0301\u200d\ufe0f👩🏽🇩🇪é你한\r\0"), max_size=400
)


SIGNS = "aZé5_.,:;!?'\"()[]{}<=>-/\\\t\n\r\x1c\x85\xa0\u0301\u0338\u2028▁ \ufdfaK你ж"
WORDS = ["  ", "\n\n", "\r\n", "    ", "'s", "12", "the", " quick", "foo", "_bar", " print", "привет", " мир"]
MARKS = ["<unk>", "</s>", "<0x0A>", "</", "\n    return"]
MIXED_TEXT = ANY_TEXT | st.lists(st.sampled_from([*SIGNS, *WORDS, *MARKS]), max_size=120).map("".join)


def check(text: str, tokenizers: list[Ends], block: int) -> list[str]:
    chunks = Chunker(block, tokenizers).cut(text)
    assert "".join(chunks) == text
    assert all(chunks)
    for chunk in chunks:
        for ends in tokenizers:
            assert len(ends(chunk)) <= block, chunk
    return chunks


def check_encoders(text: str, encoders: list[Encoder], block: int) -> list[str]:
    chunks = chunker_of(encoders, block).cut(text)
    assert "".join(chunks) == text
    assert all(chunks)
    for encoder in encoders:
        assert all(len(encoding.ids) <= block for encoding in encoder.encode(chunks))
    return chunks


@given(ANY_TEXT, st.integers(16, 64))
@settings(max_examples=150, deadline=None)
def test_any_text_is_kept_whole_and_fits_under_every_tokenizer(text: str, block: int) -> None:
    check(text, [characters, words, one_end], block)


@given(ANY_TEXT, st.integers(16, 64))
@settings(max_examples=60, deadline=None)
def test_the_same_under_real_tokenizers(real: list[Encoder], text: str, block: int) -> None:
    check_encoders(text, real, block)


@given(MIXED_TEXT, st.integers(16, 64))
@settings(max_examples=60, deadline=None)
def test_the_same_where_tokens_are_counted_and_where_they_are_asked_for(
    countable: dict[str, Encoder], real: list[Encoder], text: str, block: int
) -> None:
    check_encoders(text, list(countable.values()), block)
    check_encoders(text, [countable["llama2"], real[1]], block)


@given(MIXED_TEXT, st.data())
@settings(max_examples=300, deadline=None)
def test_counts_by_pieces_are_the_lengths_of_encodings(
    countable: dict[str, Encoder], text: str, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(list(countable)))
    encoder = countable[name]
    parted = split_points(encoder)
    assert parted is not None, name
    if not text:
        return
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    counted = PieceCounter([encoder], [parted]).take_apart(text).count(start, end)
    assert counted[0] == len(encoder.encode([text[start:end]])[0].ids)


def test_every_kind_of_tokenizer_in_the_papers_sets_is_counted_in_small_pieces(countable: dict[str, Encoder]) -> None:
    parted = {name: split_points(encoder) for name, encoder in countable.items()}
    for name, pairs in parted.items():
        assert pairs is not None, name
        assert pairs[ord("a"), ord(" ")], name


EATS_SPACE = {"id": 5, "content": "!", "special": False, "lstrip": False, "rstrip": True, "single_word": False}
LOOKS_FAR = {"type": "Split", "pattern": {"Regex": r"\w+(?=\s\w)|."}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"model": {"type": "BPE", "dropout": 0.1}},
        {"model": {"type": "Unigram"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": LOOKS_FAR},
        {"added_tokens": [EATS_SPACE]},
    ],
)
def test_tokenizers_with_unknown_parts_are_not_counted(change: dict[str, Any]) -> None:
    encoder = encoder_of(byte_level())
    assert encoder.table.components is not None
    assert "vocab" not in encoder.table.components["model"]
    assert split_points(encoder) is not None
    table = replace(encoder.table, components=encoder.table.components | change)
    assert split_points(replace(encoder, table=table)) is None


def test_a_memory_that_forgets_gives_the_same_chunks(countable: dict[str, Encoder], monkeypatch: Any) -> None:
    encoders = list(countable.values())
    text = "\n".join(LINES) * 3
    expected = check_encoders(text, encoders, 64)
    monkeypatch.setattr(token_counter, "_MOST_REMEMBERED", 10)
    assert check_encoders(text, encoders, 64) == expected
    monkeypatch.setattr(chunker_module, "_STRETCH", 1)  # stretches of 64 * 64 characters
    assert check_encoders(text, encoders, 64) == expected


def test_a_long_line_without_any_place_to_part_takes_time_in_proportion(countable: dict[str, Encoder]) -> None:
    chunker = chunker_of([countable["gpt2"]], 2048)
    seconds = []
    for length in (250_000, 1_000_000):
        started = time.process_time()
        assert "".join(chunker.cut("x7é" * (length // 4))) == "x7é" * (length // 4)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 12 * seconds[0]


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
        Chunker(16, [lambda text: np.zeros(20 * len(text), np.int32)]).cut("你")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a" * 24 + "\n\n" + "b" * 3 + "\n" + "c c" * 40, "a" * 24 + "\n\n"),
        ("a" * 24 + "\n" + "b b" * 40, "a" * 24 + "\n"),
        ("a" * 26 + " " + "b" * 90, "a" * 26),
        ("a\n\n" + "b" * 23 + " " + "c" * 90, "a\n\n" + "b" * 23),  # a paragraph that fills too little does not count
        ("a" * 90, "a" * 32),
        ("a" * 25 + " " + "b" * 6 + " c" * 40, "a" * 25 + " " + "b" * 6),  # the space right after what fits
    ],
)
def test_a_cut_prefers_paragraph_then_line_then_word(text: str, first: str) -> None:
    assert check(text, [characters], 32)[0] == first


def test_a_text_that_fits_is_one_chunk() -> None:
    text = "one two\n\nthree"
    assert Chunker(len(text), [characters]).cut(text) == [text]
    assert Chunker(16, [characters]).cut("") == []


def test_a_megabyte_without_a_space_is_cut_in_reasonable_time(real: list[Encoder]) -> None:
    started = time.monotonic()
    chunks = check_encoders("x7é" * 262_144, real[:1], 2048)
    assert len(chunks) > 100
    assert time.monotonic() - started < 30


def test_a_character_without_an_end_is_cut_and_not_encoded_to_the_end_of_the_text_for_every_chunk() -> None:
    asked: list[int] = []

    def ends(text: str) -> np.ndarray:
        asked.append(len(text))
        return characters(text)

    text = "\U0001f469\u200d" * 5000  # one user-perceived character
    chunks = Chunker(63, [ends]).cut(text)  # so that every other chunk would begin with the joiner
    assert "".join(chunks) == text
    assert max(map(len, chunks)) <= 63
    assert sum(asked) < 20 * len(text)


def test_tokenizers_that_normalise_do_not_break_the_promise() -> None:
    def nfkd(text: str) -> np.ndarray:
        """As a lossy tokenizer: one token per character of the decomposed text, ends by its origin."""
        ends, place = [], 0
        for char in text:
            place += len(char.encode())
            ends += [place] * len(unicodedata.normalize("NFKD", char))
        return np.array(ends, np.int32)

    check("ﷺ" * 50 + "ﬁn ½ Å" * 30, [nfkd, characters], 24)
