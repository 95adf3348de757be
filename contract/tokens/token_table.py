"""What every token of a tokenizer stands for in bytes.

Two tokenizers are comparable only over the UTF-8 bytes of the text. This file turns any Hugging Face tokenizer into a
`TokenTable` (bytes and role of every id, read from the tokenizer's own serialised state, never from a list of classes).
Where the tokens of a text end is `contract.tokens.encoding`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionx.contract.errors import ConfigError
from fusionx.contract.tokens.tokenizer import ROLES, backend_state, plain_ids, tokenizer_fingerprint

OTHER_SPECIAL = "special"

_MOST_IDS = 1 << 22
"""Published vocabularies have up to a million."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBES = (
    "hello world, this is a test of the tokenizer",
    "a  b\n\n\tc = d[0] + 12345",
    "naïve café, Straße, 你好世界, привет, 😀",
)


@dataclass(frozen=True)
class TokenTable:
    """What every id in 0..size-1 stands for.

    Attributes:
        token_bytes: per id the bytes it contributes to a text; None for special tokens and for holes in the ids.
        special_role: id -> "eos", "bos", "unk", "pad", or "special" for every other special token.
        byte_fallback: ids of byte tokens such as `<0x0A>`, which stand for one raw byte.
        fingerprint: of the tokenizer, see `contract.tokens.tokenizer.tokenizer_fingerprint`.
        word_ends: ids of tokens with an end-of-word suffix (`</w>`). Such a tokenizer drops white space; as its
            decoder says, the suffix stands for a space, the last of the token's bytes, whatever follows in the text.
        components: what the tokenizer's serialised state says of encoding and decoding, but for vocabulary and merges;
            None for a slow tokenizer.
    """

    token_bytes: list[bytes | None]
    special_role: dict[int, str]
    byte_fallback: frozenset[int]
    fingerprint: str
    word_ends: frozenset[int] = frozenset()
    components: dict[str, Any] | None = None

    @property
    def size(self) -> int:
        """Highest id plus one."""
        return len(self.token_bytes)

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int32]:
        """Bytes per id, int32 [size]; 0 for special tokens and holes."""
        return np.fromiter((len(piece or b"") for piece in self.token_bytes), np.int32, self.size)

    @cached_property
    def ends_word(self) -> npt.NDArray[np.bool_]:
        """Whether an id is among `word_ends`, bool [size]."""
        return np.isin(np.arange(self.size), list(self.word_ends))

    @cached_property
    def filled_bytes(self) -> list[bytes]:
        """`token_bytes` with b"" in place of None, for joining."""
        return [piece or b"" for piece in self.token_bytes]

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """Distinct bytes -> the one id that stands for them: a normal token before a byte-fallback one, the lowest."""
        chosen: dict[bytes, int] = {}
        fallback = sorted(self.byte_fallback)
        for token in [*sorted(set(range(self.size)) - self.byte_fallback - self.special_role.keys()), *fallback]:
            piece = self.token_bytes[token]
            if piece:
                chosen.setdefault(piece, token)
        return chosen

    def role_id(self, role: str) -> int | None:
        """Lowest id that plays `role`, None where there is none."""
        return min((token for token, found in self.special_role.items() if found == role), default=None)

    def known_to(self, head_size: int) -> TokenTable:
        """The table of a model whose head has so many rows: later ids stand for nothing, and no map leads to them."""
        if head_size >= self.size:
            return self
        beyond = [None] * (self.size - head_size)
        return replace(
            self,
            token_bytes=[*self.token_bytes[:head_size], *beyond],
            special_role={token: role for token, role in self.special_role.items() if token < head_size},
            byte_fallback=frozenset(token for token in self.byte_fallback if token < head_size),
            word_ends=frozenset(token for token in self.word_ends if token < head_size),
        )

    def joined(self, ids: Sequence[int]) -> bytes:
        """The bytes that a sequence of ids stands for; special tokens and holes contribute none."""
        return b"".join(map(self.filled_bytes.__getitem__, ids))


def token_table(tokenizer: Any) -> TokenTable:
    """Reads the table off a tokenizer and checks on probe texts that the bytes reproduce them.

    Raises:
        ConfigError: the pieces mean something that this reading does not know, nothing shows what they mean, or an id
            is larger than any vocabulary.
    """
    vocab: dict[str, int] = tokenizer.get_vocab()
    size = _size(tokenizer, vocab)  # first: the tokenizers library serialises every id up to the highest
    state = backend_state(tokenizer)
    roles = _special_roles(tokenizer, state)
    added = {token["id"] for token in (state or {}).get("added_tokens") or []} | set(
        getattr(tokenizer, "added_tokens_decoder", {})
    )
    model_vocab = _model_vocab(state, vocab)
    meaning = _PieceMeaning.of_state(state) if state is not None else _PieceMeaning.of_vocab(vocab)
    token_bytes: list[bytes | None] = [None] * size
    byte_fallback, word_ends = set(), set()
    for piece, token in vocab.items():
        if token in roles:
            continue
        if token in added and model_vocab.get(piece) != token:
            token_bytes[token] = piece.encode("utf-8", "surrogatepass")
            continue
        token_bytes[token] = meaning.bytes_of(piece)
        if meaning.is_byte(piece):
            byte_fallback.add(token)
        if meaning.ends_word(piece):
            word_ends.add(token)
    fingerprint = tokenizer_fingerprint(tokenizer, state)
    components = None if state is None else _without_vocabulary(state)
    table = TokenTable(token_bytes, roles, frozenset(byte_fallback), fingerprint, frozenset(word_ends), components)
    _check_on_probes(tokenizer, table)
    return table


def _size(tokenizer: Any, vocab: dict[str, int]) -> int:
    """The highest id plus one; tables and maps have a row for each."""
    piece, highest = max(vocab.items(), key=lambda item: item[1], default=("", -1))
    if highest >= _MOST_IDS:
        raise ConfigError(
            "A tokenizer has an id that is larger than any vocabulary.",
            file=getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__,
            field="vocabulary or added tokens",
            found=f"{piece!r:.80} has the id {highest:,}",
            expected=f"ids below {_MOST_IDS:,}",
            remedy="repair tokenizer.json (and added_tokens.json), or fetch the tokenizer again",
        )
    return highest + 1


def _without_vocabulary(state: dict[str, Any]) -> dict[str, Any]:
    """Writing and reading the whole state takes a second for 262,000 tokens; what is small in it is kept, but not what
    calls change (truncation, padding) or round trips rewrite."""
    kept = {key: part for key, part in state.items() if key not in ("truncation", "padding", "post_processor")}
    return kept | {"model": {key: part for key, part in state["model"].items() if key not in ("vocab", "merges")}}


def _special_roles(tokenizer: Any, state: dict[str, Any] | None) -> dict[int, str]:
    roles = {token["id"]: OTHER_SPECIAL for token in (state or {}).get("added_tokens") or [] if token["special"]}
    roles.update((token, OTHER_SPECIAL) for token in tokenizer.all_special_ids if token is not None)
    named = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    if named["unk"] is None:
        named["unk"] = _model_unknown(state)
    roles.update((token, role) for role, token in reversed(named.items()) if token is not None)
    return dict(sorted(roles.items()))


def _model_unknown(state: dict[str, Any] | None) -> int | None:
    """The id that the model itself gives to what it cannot spell; not every tokenizer_config.json names its role."""
    if state is None:
        return None
    model = state["model"]
    return model.get("unk_id") if model["type"] == "Unigram" else model["vocab"].get(model.get("unk_token"))


def _model_vocab(state: dict[str, Any] | None, vocab: dict[str, int]) -> dict[str, int]:
    """Piece -> id of the model proper, without added tokens (Unigram keeps a list of pieces with scores)."""
    if state is None:
        return vocab
    pieces = state["model"].get("vocab") or {}
    return pieces if isinstance(pieces, dict) else {piece: token for token, (piece, _) in enumerate(pieces)}


@dataclass(frozen=True)
class _PieceMeaning:
    """How the pieces of one tokenizer spell bytes; each part is read from the tokenizer's own components."""

    byte_level: bool
    space_marker: str | None
    byte_pieces: bool
    word_piece: bool
    continuing_prefix: str
    word_suffix: str

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> _PieceMeaning:
        components = [part for key in ("normalizer", "pre_tokenizer", "decoder") for part in _flatten(state.get(key))]
        types = {part["type"] for part in components}
        model = state["model"]
        return cls(
            byte_level="ByteLevel" in types,
            space_marker=next(filter(None, map(_space_marker, components)), None),
            byte_pieces="ByteFallback" in types or bool(model.get("byte_fallback")),
            word_piece=model.get("type") == "WordPiece",
            continuing_prefix=model.get("continuing_subword_prefix") or "",
            word_suffix=model.get("end_of_word_suffix") or "",
        )

    @classmethod
    def of_vocab(cls, vocab: dict[str, int]) -> _PieceMeaning:
        """For slow tokenizers, which show no components: judged by the pieces, then checked on the probes."""
        marked = {marker: sum(piece.startswith(marker) for piece in vocab) for marker in ("Ġ", "▁")}
        byte_pieces = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
        byte_level = not byte_pieces and marked["Ġ"] > marked["▁"]
        marker = "▁" if marked["▁"] and not byte_level else None
        word_piece = marker is None and any(piece.startswith("##") for piece in vocab) and not byte_level
        suffix = "</w>" if sum(piece.endswith("</w>") for piece in vocab) > 1 else ""  # one may be a special token
        return cls(byte_level, marker, byte_pieces, word_piece, "##" if word_piece else "", suffix)

    def is_byte(self, piece: str) -> bool:
        return self.byte_pieces and _BYTE_PIECE.fullmatch(piece) is not None

    def ends_word(self, piece: str) -> bool:
        return bool(self.word_suffix) and piece.endswith(self.word_suffix)

    def bytes_of(self, piece: str) -> bytes:
        if self.is_byte(piece):
            return bytes([int(piece[3:5], 16)])
        if self.continuing_prefix and piece.startswith(self.continuing_prefix):
            piece = piece[len(self.continuing_prefix) :]
        elif self.word_piece and _starts_word(piece):
            # A WordPiece tokenizer drops white space; as its decoder says, a word's first piece stands for " word".
            piece = " " + piece
        if self.ends_word(piece):
            return self._spelled(piece[: -len(self.word_suffix)]) + b" "
        return self._spelled(piece)

    def _spelled(self, piece: str) -> bytes:
        if self.byte_level:
            spelled = [_BYTE_OF_CHAR.get(char) for char in piece]
            known = [byte for byte in spelled if byte is not None]
            return bytes(known) if len(known) == len(spelled) else piece.encode("utf-8", "surrogatepass")
        if self.space_marker:
            piece = piece.replace(self.space_marker, " ")
        return piece.encode("utf-8", "surrogatepass")


def _starts_word(piece: str) -> bool:
    """Whether a space is understood before this first piece: before words, not before isolated punctuation."""
    return bool(piece) and piece[0].isalnum()


def _flatten(component: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder as the flat series of its parts."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        for part in component.get(key) or []:
            yield from _flatten(part)


def _space_marker(part: dict[str, Any]) -> str | None:
    """The character that stands for a space, if this component puts it there or takes it away."""
    if part["type"] == "Metaspace":
        return str(part["replacement"])
    if part["type"] == "Replace":
        pattern = part["pattern"].get("String")
        if pattern == " " and part["content"].strip():
            return str(part["content"])  # normalizer: " " -> "▁"
        if part["content"] == " " and pattern and pattern.strip():
            return str(pattern)  # decoder: "▁" -> " "
    return None


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of the byte-level BPE alphabet: printable Latin-1 stays, the rest moves to U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(moved)}


_BYTE_OF_CHAR = _byte_alphabet()


def _check_on_probes(tokenizer: Any, table: TokenTable) -> None:
    """Requires that a probe's tokens join to the probe, up to normalisation and what the vocabulary cannot spell."""
    for probe, ids in zip(_PROBES, plain_ids(tokenizer, list(_PROBES)), strict=True):
        joined = table.joined(ids)
        if joined.removeprefix(b" ") == probe.encode():
            continue
        rest_of_probe = iter(_bare(probe))
        if all(char in rest_of_probe for char in _bare(joined.decode("utf-8", "replace"))):
            continue
        raise ConfigError(
            "The tokens of this tokenizer do not spell the text they stand for.",
            file=getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__,
            found=f"{joined!r}",
            expected=f"{probe.encode()!r}",
            remedy="use a byte-level, SentencePiece-style, WordPiece or word-level tokenizer with its tokenizer.json",
        )


def _bare(text: str) -> str:
    """Text without case, accents and white space, which normalizers change."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in decomposed if not char.isspace() and not unicodedata.combining(char))
