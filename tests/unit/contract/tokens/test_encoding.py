"""Ends of tokens over tokenizers of every common construction, on arbitrary Unicode."""

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_builder import CORPUS, LOSSLESS, MARKED, NORMALISING, SPECIAL, byte_level_bpe, made
from tokenizers import normalizers

from fusionx.contract.errors import ConfigError
from fusionx.contract.tokens.encoding import encode, encode_batch, valid_text
from fusionx.contract.tokens.token_table import token_table
from fusionx.contract.tokens.tokenizer import tokenizer_fingerprint

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text(st.sampled_from("ab AB \n\t.▁<0x41>é e\u0301\u0130ŉ你😀\x00\u200b</s>Straße"), max_size=40),
    st.lists(st.sampled_from([*CORPUS[:4], "<s>", "</s>", "<|endoftext|>", "     ", "→añadido", " "]), max_size=4).map(
        "".join
    ),
    st.lists(
        st.sampled_from(["<table>", "<start_of_turn>", "<fim_prefix>", "\n\n", "\n", " ", "12", "a"]), max_size=9
    ).map("".join),
)
relaxed = settings(max_examples=120, deadline=None)


def brute_force_ends(pieces: list[bytes], prefix: int) -> list[int]:
    return [max(0, sum(len(piece) for piece in pieces[: count + 1]) - prefix) for count in range(len(pieces))]


def last_of_equal(ends: np.ndarray) -> np.ndarray:
    """The only positions that an alignment uses."""
    return np.flatnonzero(np.append(ends[1:] != ends[:-1], True)[: len(ends)])


def bare(text: str) -> str:
    """What no normalizer of these tests changes: no case, accents, white space or control characters."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text.casefold()).casefold())
    return "".join(char for char in folded if unicodedata.category(char)[0] not in "MZC")


@pytest.mark.parametrize("name", LOSSLESS)
@relaxed
@given(text=TEXT)
def test_lossless_tokenizers_spell_every_text(name: str, text: str) -> None:
    tokenizer, table = made(name)
    found = encode(tokenizer, table, text, add_bos=False)
    pieces = [table.token_bytes[token] for token in found.ids]
    assert not found.lossy
    assert b"".join(pieces) == text.encode()
    assert found.ends.tolist() == brute_force_ends(pieces, 0)
    assert found.ids.dtype == found.ends.dtype == np.int32


@pytest.mark.parametrize("name", MARKED)
@relaxed
@given(text=TEXT)
@example(text=" ▁")
@example(text=" 0▁")
@example(text="  ▁0")
def test_marked_tokenizers_spell_every_text_but_the_marker_itself(name: str, text: str) -> None:
    """The only loss is declared: a literal marker in the text reads as a space (and a byte's name as that byte)."""
    tokenizer, table = made(name)
    found = encode(tokenizer, table, text, add_bos=False)
    if name == "unigram" and any(special in text for special in SPECIAL):
        assert found.lossy  # this model lists them as ordinary pieces and finds them by their spelling
        return
    pieces = [table.token_bytes[token] for token in found.ids]
    joined, length = b"".join(pieces), len(text.encode())
    assert np.all(np.diff(found.ends) >= 0)
    assert not text or found.ends[-1] == length
    if not found.lossy:
        prefix = len(joined) - length
        assert prefix in (0, 1)
        assert joined == b" " * prefix + text.encode()
        assert found.ends.tolist() == brute_force_ends(pieces, prefix)
    elif "<0x" not in text:
        assert "▁" in text
        spaced = text.replace("▁", " ").encode()
        prefix = len(joined) - len(spaced)
        assert prefix in (0, 1)
        assert joined == b" " * prefix + spaced
        original_byte = [at for char in text for at in _bytes_of_char_in_both(char)]
        starts = np.cumsum([0, *original_byte])
        exact = np.array([starts[end] for end in brute_force_ends(pieces, prefix)])
        assert np.all(found.ends >= exact)
        assert np.array_equal(found.ends[last_of_equal(found.ends)], exact[last_of_equal(found.ends)])


def _bytes_of_char_in_both(char: str) -> list[int]:
    """Bytes of the text that each byte of the spaced text stands for."""
    return [3] if char == "▁" else [1] * len(char.encode())


@pytest.mark.parametrize("name", NORMALISING)
@relaxed
@given(text=TEXT)
def test_normalising_tokenizers_end_on_true_boundaries(name: str, text: str) -> None:
    tokenizer, table = made(name)
    found = encode(tokenizer, table, text, add_bos=False)
    data = text.encode()
    assert np.all(np.diff(found.ends) >= 0)
    assert all(0 <= end <= len(data) for end in found.ends)
    if "unk" in {table.special_role.get(token) for token in found.ids.tolist()}:
        return
    for position in last_of_equal(found.ends):
        end = found.ends[position]
        if end < len(data) and data[end] & 0xC0 == 0x80:
            continue  # inside a character there is no text to compare
        joined, consumed = table.joined(found.ids[: position + 1].tolist()).decode(), data[:end].decode()
        assert bare(joined) == bare(consumed)
        if name == "byte-level-nfc":
            # Spaces aside: this tokenizer puts one before every stretch between added tokens.
            assert joined.replace(" ", "") == unicodedata.normalize("NFC", consumed).replace(" ", "")


@pytest.mark.parametrize(
    ("text", "pieces", "ends", "lossy"),
    [
        ("hello world", ["hello ", "world "], [6, 11], False),
        ("hello world ", ["hello ", "world "], [6, 12], False),
        ("Hello World", ["hello ", "world "], [6, 11], True),
        ("hello, world", ["hello ", ", ", "world "], [5, 7, 12], True),
        ("hello  world", ["hello ", "world "], [6, 12], True),
        ("hello\u3000world\n", ["hello ", "world "], [8, 14], True),
    ],
)
def test_an_end_of_word_suffix_is_the_space_after_the_word(
    text: str, pieces: list[str], ends: list[int], lossy: bool
) -> None:
    """A space behind a word belongs to it whether the rest of the text is spelled exactly or not."""
    tokenizer, table = made("clip")
    found = encode(tokenizer, table, text, add_bos=False)
    assert [table.token_bytes[token].decode() for token in found.ids] == pieces
    assert (found.ends.tolist(), found.lossy) == (ends, lossy)


def test_an_end_of_word_within_a_character_keeps_exact_ends() -> None:
    tokenizer, table = made("clip")
    found = encode(tokenizer, table, "A😀 😀b", add_bos=False)
    assert [table.token_bytes[token] for token in found.ids] == [
        *(b"a ", b"\xf0\x9f\x98", b"\x80 "),
        *(b"\xf0\x9f\x98", b"\x80 ", b"b "),
    ]
    assert found.ends.tolist() == [1, 4, 6, 9, 10, 11]


def test_words_with_a_suffix_are_told_apart() -> None:
    tokenizer, table = made("clip")
    apart, together = (table.joined(encode(tokenizer, table, text, False).ids) for text in ("the dog", "thedog"))
    assert (apart, together) == (b"the dog ", b"thedog ")


def test_decomposed_text_under_nfc_ends_at_its_own_bytes() -> None:
    tokenizer, table = made("byte-level-nfc")
    text = "ae\u0301 end \u1100\u1161\u11a8x"
    found = encode(tokenizer, table, text, add_bos=False)
    assert found.lossy
    pieces = [table.token_bytes[token] for token in found.ids]
    assert b"".join(pieces) == " aé end 각x".encode()
    # "é" is two bytes in NFC and three in the text, "각" three and nine: no end lies inside them.
    assert not {2, 3, *range(10, 18)} & set(found.ends.tolist())
    assert {4, 8, 18, 19} <= set(found.ends.tolist())


def test_trailing_white_space_is_not_cut_off_the_ends() -> None:
    """ByteLevel post-processors trim offsets; ours are taken without them."""
    from tokenizers import processors

    tokenizer = byte_level_bpe(normalizer=normalizers.NFC())
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    table = token_table(tokenizer)
    text = "e\u0301 \n\n a"
    assert encode(tokenizer, table, text, add_bos=False).ends.tolist()[-1] == len(text.encode())
    assert len(set(encode(tokenizer, table, text, add_bos=False).ends.tolist())) >= 4


def test_bos_is_prepended_with_end_zero() -> None:
    tokenizer, table = made("mistral")
    bare, with_bos = (encode(tokenizer, table, "Hello world", add_bos=flag) for flag in (False, True))
    assert with_bos.ids.tolist() == [tokenizer.bos_token_id, *bare.ids.tolist()]
    assert with_bos.ends.tolist() == [0, *bare.ends.tolist()]
    assert encode(tokenizer, table, "", add_bos=True).ids.tolist() == [tokenizer.bos_token_id]
    tokenizer, table = made("wordpiece")
    with pytest.raises(ConfigError, match="has none"):
        encode(tokenizer, table, "x", add_bos=True)


def test_batches_equal_single_texts() -> None:
    texts = ["", "a▁b", "Straße </s>", CORPUS[1], "\x00", "你" * 50]
    for name in ("mistral", "wordpiece", "byte-level-nfc"):
        tokenizer, table = made(name)
        for text, found in zip(texts, encode_batch(tokenizer, table, texts, False), strict=True):
            alone = encode(tokenizer, table, text, False)
            assert found.ids.tolist() == alone.ids.tolist()
            assert found.ends.tolist() == alone.ends.tolist()
            assert found.lossy == alone.lossy


def test_no_boundary_inside_marks_that_a_normalizer_puts_into_another_order() -> None:
    tokenizer, table = made("byte-level-nfc")
    assert encode(tokenizer, table, "x\u0645\u0651\u064e", False).ends.tolist()[-6:] == [2, 3, 7, 7, 7, 7]
    assert set(encode(tokenizer, table, "a\u0316\u0301b", False).ends.tolist()) == {5, 6}


@relaxed
@given(
    text=st.text(st.sampled_from("ab e\u0301\u0316\u0651\u0645\u064e\u0302\u0323éé\u1100\u1161\u11a8가\n"), max_size=20)
)
def test_what_a_normalizer_reorders_or_composes_is_consumed_as_a_whole(text: str) -> None:
    """At every boundary the tokens so far spell the normal form of the text so far."""
    tokenizer, table = made("byte-level-nfc")
    found, data = encode(tokenizer, table, text, False), text.encode()
    for position in last_of_equal(found.ends).tolist():
        so_far = data[: found.ends[position]].decode("utf-8", "replace")
        spelled = table.joined(found.ids[: position + 1])
        if "\ufffd" not in so_far:
            assert spelled.removeprefix(b" ") == unicodedata.normalize("NFC", so_far).encode().removeprefix(b" ")


def test_spelled_special_tokens_are_text_to_a_slow_tokenizer_too() -> None:
    tokenizer, table = made("slow-sentencepiece")
    found = encode(tokenizer, table, "a</s><s>", False)
    assert not found.lossy
    assert not set(found.ids.tolist()) & set(table.special_role)


def test_spelled_special_tokens_are_text_and_nothing_is_truncated() -> None:
    tokenizer, table = made("mistral")
    tokenizer.backend_tokenizer.enable_truncation(max_length=2)
    tokenizer.backend_tokenizer.enable_padding(length=4)
    found = encode(tokenizer, table, "a</s><s>" * 100, False)
    assert not set(found.ids.tolist()) & set(table.special_role)
    assert found.ends[-1] == 800
    assert tokenizer_fingerprint(tokenizer) == table.fingerprint


def test_one_megabyte_without_a_space() -> None:
    for name in ("sentencepiece", "byte-level"):
        tokenizer, table = made(name)
        text = "abcdefghij" * 100_000
        assert encode(tokenizer, table, text, False).ends[-1] == len(text)


def test_lone_surrogates_are_refused() -> None:
    tokenizer, table = made("byte-level")
    assert valid_text("ok 😀")
    assert not valid_text("bad \ud800")
    with pytest.raises(ValueError, match="surrogate"):
        encode(tokenizer, table, "bad \ud800", False)


class SlowTokenizer:
    """The interface of a tokenizer without a Rust backend: one token per character, some characters unknown."""

    bos_token_id = None
    all_special_ids = (0,)
    unk_token_id = 0

    def __init__(self) -> None:
        self.vocab = {"<unk>": 0} | {char: token for token, char in enumerate(map(chr, range(32, 127)), 1)}

    def get_vocab(self) -> dict[str, int]:
        return self.vocab

    def encode(self, text: str, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        return [self.vocab.get(char, 0) for char in text]


def test_slow_tokenizers_are_read_by_their_vocabulary() -> None:
    tokenizer = SlowTokenizer()
    table = token_table(tokenizer)
    assert table.token_bytes[1] == b" "
    assert encode(tokenizer, table, "abc", False).ends.tolist() == [1, 2, 3]
    found = encode(tokenizer, table, "aéb", False)
    assert found.lossy
    assert found.ends.tolist() == [1, 1, 4]
    assert tokenizer_fingerprint(tokenizer) == table.fingerprint


class SlowWords(SlowTokenizer):
    """One token per character, the last of a word with a suffix."""

    def __init__(self) -> None:
        letters = [chr(code) for code in range(33, 127)]
        pieces = ["<unk>", *letters, *(letter + "</w>" for letter in letters)]
        self.vocab = {piece: token for token, piece in enumerate(pieces)}

    def encode(self, text: str, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        words = [[*word[:-1], word[-1] + "</w>"] for word in text.split()]
        return [self.vocab.get(piece, 0) for word in words for piece in word]


def test_slow_tokenizers_with_word_ends() -> None:
    tokenizer = SlowWords()
    table = token_table(tokenizer)
    found = encode(tokenizer, table, "ab c", False)
    assert table.joined(found.ids) == b"ab c "
    assert (found.ends.tolist(), found.lossy) == ([1, 3, 4], False)
    assert encode(tokenizer, table, "ab\nc", False).ends.tolist() == [1, 4, 4]
