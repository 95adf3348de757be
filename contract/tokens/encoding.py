"""Where each token of a text ends: texts into ids with exact byte offsets.

Cutting documents and aligning tokenizations is left to others.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionx.contract.errors import ConfigError
from fusionx.contract.tokens.token_table import TokenTable
from fusionx.contract.tokens.tokenizer import plain_backend, plain_ids


def valid_text(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8, that is, holds no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Encoding:
    """One text's tokens.

    Attributes:
        ids: int32 [T].
        ends: int32 [T], UTF-8 bytes of the text consumed after each token; never decreasing; a BOS has 0. Where
            tokens share a piece of text that cannot be divided among them exactly, all of them have its end, so that
            the last of several equal ends is always a true boundary. A word that ends with a suffix (`</w>`) has
            consumed the white space character after it.
        lossy: the tokens do not spell the text exactly (the tokenizer normalises); ends come from character offsets.
        context: how many of the tokens only precede what is read: of a conversation (`contract.tokens.chat`), all but
            the last before the answer, which stands where a text has its BOS; 0 of a text.
    """

    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    lossy: bool = False
    context: int = 0

    @property
    def read(self) -> Encoding:
        """Without the context: what distributions are stored of, aligned and taught."""
        return Encoding(self.ids[self.context :], self.ends[self.context :], self.lossy) if self.context else self


def encode(tokenizer: Any, table: TokenTable, text: str, add_bos: bool) -> Encoding:
    """Encodes one text; see `encode_batch`."""
    return encode_batch(tokenizer, table, [text], add_bos)[0]


def encode_batch(tokenizer: Any, table: TokenTable, texts: Sequence[str], add_bos: bool) -> list[Encoding]:
    """Encodes texts with the tokenizer's batch call; nothing is added but a BOS in front where `add_bos`.

    The spelling of a special token inside a text (`</s>`) is text, not that token: a document must not be able to
    end itself. (Unigram models that list `</s>` among their ordinary pieces find it all the same; the text then counts
    as lossy.)

    Raises:
        ValueError: a text holds a lone surrogate (callers check `valid_text` first).
        ConfigError: `add_bos` without a BOS token.
    """
    if not all(map(valid_text, texts)):
        raise ValueError("a text holds a lone surrogate; check valid_text() before encoding")
    if add_bos and tokenizer.bos_token_id is None:
        raise ConfigError(
            "A BOS is asked for, but the tokenizer has none.",
            file=getattr(tokenizer, "name_or_path", None),
            field="add_bos",
            found="true",
            expected="false",
            remedy="set add_bos to false for this model",
        )
    bos = [tokenizer.bos_token_id] if add_bos else []
    encodings: list[Encoding | None] = []
    lossy = []
    for index, (text, ids) in enumerate(zip(texts, plain_ids(tokenizer, texts), strict=True)):
        ends = exact_ends(table, ids, text.encode("utf-8"))
        if ends is None:
            lossy.append(index)
        encodings.append(None if ends is None else _with_bos(bos, ids, ends, lossy=False))
    if lossy:
        lossy_texts = [texts[index] for index in lossy]
        for index, (ids, ends) in zip(lossy, _lossy_ends(tokenizer, table, lossy_texts), strict=True):
            encodings[index] = _with_bos(bos, ids, ends, lossy=True)
    return [encoding for encoding in encodings if encoding is not None]


def _with_bos(bos: list[int], ids: Sequence[int], ends: npt.NDArray[np.int32], lossy: bool) -> Encoding:
    return Encoding(
        np.concatenate([np.array(bos, np.int32), np.asarray(ids, np.int32)]),
        np.concatenate([np.zeros(len(bos), np.int32), ends]),
        lossy,
    )


def exact_ends(
    table: TokenTable, ids: Sequence[int], text: bytes, within: bool = False
) -> npt.NDArray[np.int32] | None:
    """Cumulative byte lengths where the tokens spell `text`, or `text` after one dummy prefix space; else None.

    `within`: what the first token spells before `text` may be anything: it is the end of the text before it.
    """
    joined = _joined_before(table, ids, text[-1:])
    prefix = len(joined) - len(text)
    if within and prefix > 0:
        known = joined.endswith(text) and prefix < table.byte_lengths[ids[0]]
    else:
        known = prefix in (0, 1) and joined == b" " * prefix + text
    if not known:
        return None
    ends = np.cumsum(table.byte_lengths[np.asarray(ids, np.int64)], dtype=np.int32) - np.int32(prefix)
    return np.clip(ends, 0, len(text))


def _joined_before(table: TokenTable, ids: Sequence[int], last: bytes) -> bytes:
    """The bytes of the tokens of a text whose last byte is `last`: a word that ends the text has no space behind it."""
    joined = table.joined(ids)
    return joined[:-1] if len(ids) and ids[-1] in table.word_ends and last != b" " else joined


def _lossy_ends(
    tokenizer: Any, table: TokenTable, texts: Sequence[str]
) -> Iterator[tuple[list[int], npt.NDArray[np.int32]]]:
    """Ids and ends of texts that the tokens do not spell: from character offsets where the tokenizer has them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        probe, *encoded = plain_ids(tokenizer, ["a", *texts])
        puts_space = table.joined(probe).startswith(b" ")
        for text, ids in zip(texts, encoded, strict=True):
            yield ids, _ends_until_difference(table, ids, text.encode("utf-8"), puts_space)
        return
    with plain_backend(backend):
        encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        ids = encoding.ids
        yield ids, offset_ends(table, ids, np.array(encoding.offsets, np.int64).reshape(-1, 2), text)


def _ends_until_difference(
    table: TokenTable, ids: Sequence[int], text: bytes, puts_space: bool
) -> npt.NDArray[np.int32]:
    """Exact ends as far as the tokens spell the text; beyond, nothing is known, so all ends are the text's end.

    `puts_space`: the tokenizer puts a space of its own in front of a text.
    """
    joined = table.joined(ids)
    prefix = int(puts_space and joined[:1] == b" ")
    spelled = np.frombuffer(joined[prefix : prefix + len(text)], np.uint8)
    given = np.frombuffer(text, np.uint8)[: len(spelled)]
    differs = np.flatnonzero(spelled != given)
    agreed = int(differs[0]) if len(differs) else len(spelled)
    ends = np.maximum(np.cumsum(table.byte_lengths[np.asarray(ids, np.int64)]) - prefix, 0)
    return np.where(ends <= agreed, ends, len(text)).astype(np.int32)


def offset_ends(
    table: TokenTable, ids: Sequence[int], offsets: npt.NDArray[np.int64], text: str
) -> npt.NDArray[np.int32]:
    """Byte ends from character offsets int64 [T, 2].

    Tokens whose characters overlap (several tokens within one character, or within one letter and its marks, which
    normalizers reorder and compose) form a group. As far as its bytes spell its characters, its ends are exact sums;
    beyond, all of them are the group's end. The end of a word is that of the white space character after it, if there
    is one.
    """
    byte_at = _byte_at_character(text)
    first_of, end_of = _letters_with_marks(text)
    char_ends = end_of[_with_composed(offsets, text)]
    starts, spelled_ends = byte_at[first_of[offsets[:, 0]]], byte_at[char_ends]
    ends = byte_at[char_ends + _ends_word_before_space(table, ids, char_ends, text)]
    shares = np.append(starts[1:] < ends[:-1], False)[: len(ends)]  # token i shares characters with token i + 1
    if not shares.any():
        return ends.astype(np.int32)
    data = text.encode("utf-8")
    inside = np.concatenate([[False], shares])
    firsts = np.flatnonzero(inside[1:] & ~inside[:-1])
    lasts = np.flatnonzero(~inside[1:] & inside[:-1])
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        group = slice(first, last + 1)
        start, end = int(starts[first]), int(ends[last])
        spelled, given = _joined_before(table, ids[group], b""), data[start : int(spelled_ends[last])]
        own_space, agreed = _agreement(spelled, given, first == 0)
        agreed += start
        if spelled[own_space:] != given:  # a character that is spelled in part only is not consumed
            agreed = int(byte_at[np.searchsorted(byte_at, agreed, side="right") - 1])
        exact = start + np.cumsum(table.byte_lengths[np.asarray(ids[first:last], np.int64)]) - own_space
        ends[first:last] = np.where(exact <= agreed, np.maximum(exact, start), end)
    return ends.astype(np.int32)


def _agreement(spelled: bytes, given: bytes, at_start: bool) -> tuple[int, int]:
    """Whether the tokens begin with a space of the tokenizer's own (0 or 1), and how many bytes they then spell.

    Such a space stands at a text's start only. Where the text begins with a space, too, and both readings come equally
    far, no byte is known to be spelled.
    """
    plain = _common(spelled, given)
    if not at_start or spelled == given or spelled[:1] != b" ":
        return 0, plain
    shifted = _common(spelled[1:], given)
    if shifted > plain or spelled[1:] == given:
        return 1, shifted
    return 0, plain if plain > shifted else 0


def _common(one: bytes, other: bytes) -> int:
    """Length of the common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _ends_word_before_space(
    table: TokenTable, ids: Sequence[int], char_ends: npt.NDArray[np.int64], text: str
) -> npt.NDArray[np.bool_]:
    """Which tokens have an end-of-word suffix and white space behind them, bool [T]."""
    if not table.word_ends:
        return np.zeros(len(ids), np.bool_)
    is_space = np.array([*map(str.isspace, text), False])
    return table.ends_word[np.asarray(ids, np.int64)] & is_space[char_ends]


def _with_composed(offsets: npt.NDArray[np.int64], text: str) -> npt.NDArray[np.int64]:
    """Character ends, moved over characters that belong to no token but are no white space.

    Where a normalizer composes (e + accent, Hangul), the offsets name only the first character, but the token has
    consumed all of them. White space between tokens stays before the next token, as other tokenizers have it.
    """
    ends = np.maximum.accumulate(offsets[:, 1])
    next_start = np.append(offsets[1:, 0], len(text))[: len(ends)]
    spaces = np.array([*(match.start() for match in re.finditer(r"\s", text)), len(text)], np.int64)
    next_space = spaces[np.searchsorted(spaces, ends)]
    return np.maximum(ends, np.minimum(next_start, next_space))


def _letters_with_marks(text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of every place between characters, int64 [characters + 1], the start and the end of the letter that it is in.

    A letter and its combining marks go together: normal forms put marks into another order and compose the letter with
    any of them, and the tokenizer's offsets then name other characters than were consumed.
    """
    places = np.arange(len(text) + 1)
    is_mark = np.array([*map(bool, map(unicodedata.combining, text)), False])
    if not is_mark.any():
        return places, places
    first_of = np.maximum.accumulate(np.where(is_mark, 0, places))
    end_of = np.minimum.accumulate(np.where(is_mark, len(text), places)[::-1])[::-1]
    return first_of, end_of


def _byte_at_character(text: str) -> npt.NDArray[np.int64]:
    """Byte offset of every character and of the text's end, int64 [characters + 1]."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lengths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(lengths)])
