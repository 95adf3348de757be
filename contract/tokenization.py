"""What every token of a tokenizer stands for in bytes, and where each token of a text ends.

Two tokenizers are comparable only over the UTF-8 bytes of the text. This file turns any Hugging Face tokenizer into a
`TokenTable` (bytes and role of every id, read from the tokenizer's own serialised state, never from a list of
classes) and texts into ids with exact end offsets. Cutting documents and aligning tokenizations is left to others.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError

# Where one id plays several roles (GPT-2's <|endoftext|> is bos, eos and unk), the one a model can *predict* wins.
ROLES = ("eos", "bos", "unk", "pad")
OTHER_SPECIAL = "special"

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBES = (
    "hello world, this is a test of the tokenizer",
    "a  b\n\n\tc = d[0] + 12345",
    "naïve café, Straße, 你好世界, привет, 😀",
)


def valid_text(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8, that is, holds no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def load_tokenizer(folder_or_hub_id: str | Path, revision: str | None = None) -> Any:
    """Loads a tokenizer (the fast one where there is one); code from the folder is never run.

    Raises:
        ConfigError: there is no such folder or hub id, or what is there is no loadable tokenizer.
    """
    from transformers import AutoTokenizer

    name = str(folder_or_hub_id)
    looks_local = isinstance(folder_or_hub_id, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not Path(name).expanduser().is_dir():
        raise ConfigError(
            "There is no such tokenizer folder.",
            file=name,
            remedy="name a folder with tokenizer.json (or tokenizer.model), or a hub id",
        )
    if looks_local:
        name = str(Path(name).expanduser())
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, use_fast=True, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and Rust's bare Exception alike
        raise ConfigError(
            "The tokenizer cannot be loaded.",
            file=name,
            found=f"{type(error).__name__}: {' '.join(str(error).split()):.200}",
            expected="a folder with tokenizer.json (or tokenizer.model) and tokenizer_config.json, or a hub id",
            remedy="check the name and revision; without a network, give a local folder",
        ) from error


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts its BOS in front of a text by default (found by trying)."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    ids = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    return len(ids) > len(bare) and ids[0] == bos


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """First 16 hex digits of a SHA-256 over everything that decides how a text is encoded.

    Covers vocabulary, merges, normalizer, pre-tokenizer, decoder, added tokens, special tokens by role and whether a
    BOS is added; leaves out truncation, padding and the post-processor's wording, which calls change and round trips
    rewrite. Equal across processes and across save/load.
    """
    return _fingerprint(tokenizer, _backend_state(tokenizer))


def _fingerprint(tokenizer: Any, state: dict[str, Any] | None) -> str:
    if state is None:
        encoder: dict[str, Any] = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    else:
        encoder = {key: value for key, value in state.items() if key not in ("truncation", "padding", "post_processor")}
        encoder["added_tokens"] = sorted(encoder.get("added_tokens") or [], key=lambda token: token["id"])
    content = {
        "encoder": encoder,
        "roles": {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES},
        "special_ids": sorted(tokenizer.all_special_ids),
        "adds_bos": adds_bos(tokenizer),
    }
    # Lone surrogates cannot occur in a vocabulary that came from Rust; ascii escapes keep slow ones safe too.
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _backend_state(tokenizer: Any) -> dict[str, Any] | None:
    """The fast tokenizer's own serialised state (the content of tokenizer.json), None for a slow tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else json.loads(backend.to_str())


@dataclass(frozen=True)
class TokenTable:
    """What every id in 0..size-1 stands for.

    Attributes:
        token_bytes: per id the bytes it contributes to a text; None for special tokens and for holes in the ids.
        special_role: id -> "eos", "bos", "unk", "pad", or "special" for every other special token.
        byte_fallback: ids of byte tokens such as `<0x0A>`, which stand for one raw byte.
        fingerprint: of the tokenizer, see `tokenizer_fingerprint`.
    """

    token_bytes: list[bytes | None]
    special_role: dict[int, str]
    byte_fallback: frozenset[int]
    fingerprint: str

    @property
    def size(self) -> int:
        """Highest id plus one."""
        return len(self.token_bytes)

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int32]:
        """Bytes per id, int32 [size]; 0 for special tokens and holes."""
        return np.fromiter((len(piece or b"") for piece in self.token_bytes), np.int32, self.size)

    @cached_property
    def filled_bytes(self) -> list[bytes]:
        """`token_bytes` with b"" in place of None, for joining."""
        return [piece or b"" for piece in self.token_bytes]

    def role_id(self, role: str) -> int | None:
        """Lowest id that plays `role`, None where there is none."""
        return min((token for token, found in self.special_role.items() if found == role), default=None)

    def joined(self, ids: Sequence[int]) -> bytes:
        """The bytes that a sequence of ids stands for; special tokens and holes contribute none."""
        return b"".join(map(self.filled_bytes.__getitem__, ids))


def token_table(tokenizer: Any) -> TokenTable:
    """Reads the table off a tokenizer and checks on probe texts that the bytes reproduce them.

    Raises:
        ConfigError: the pieces mean something that this reading does not know.
    """
    state = _backend_state(tokenizer)
    vocab: dict[str, int] = tokenizer.get_vocab()
    size = max(vocab.values(), default=-1) + 1
    roles = _special_roles(tokenizer, state)
    added = {token["id"] for token in (state or {}).get("added_tokens") or []} | set(
        getattr(tokenizer, "added_tokens_decoder", {})
    )
    model_vocab = _model_vocab(state, vocab)
    meaning = _PieceMeaning.of_state(state) if state is not None else _PieceMeaning.of_vocab(vocab)
    token_bytes: list[bytes | None] = [None] * size
    byte_fallback = set()
    for piece, token in vocab.items():
        if token in roles:
            continue
        if token in added and model_vocab.get(piece) != token:
            token_bytes[token] = piece.encode("utf-8", "surrogatepass")
            continue
        token_bytes[token] = meaning.bytes_of(piece)
        if meaning.is_byte(piece):
            byte_fallback.add(token)
    table = TokenTable(token_bytes, roles, frozenset(byte_fallback), _fingerprint(tokenizer, state))
    _check_on_probes(tokenizer, table)
    return table


def _special_roles(tokenizer: Any, state: dict[str, Any] | None) -> dict[int, str]:
    roles = {token["id"]: OTHER_SPECIAL for token in (state or {}).get("added_tokens") or [] if token["special"]}
    roles.update((token, OTHER_SPECIAL) for token in tokenizer.all_special_ids if token is not None)
    for role in reversed(ROLES):
        token = getattr(tokenizer, f"{role}_token_id", None)
        if token is not None:
            roles[token] = role
    return dict(sorted(roles.items()))


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
        return cls(byte_level, marker, byte_pieces, word_piece, "##" if word_piece else "", "")

    def is_byte(self, piece: str) -> bool:
        return self.byte_pieces and _BYTE_PIECE.fullmatch(piece) is not None

    def bytes_of(self, piece: str) -> bytes:
        if self.is_byte(piece):
            return bytes([int(piece[3:5], 16)])
        if self.continuing_prefix and piece.startswith(self.continuing_prefix):
            piece = piece[len(self.continuing_prefix) :]
        elif self.word_piece and _starts_word(piece):
            # A WordPiece tokenizer drops white space; as its decoder says, a word's first piece stands for " word".
            piece = " " + piece
        if self.word_suffix and piece.endswith(self.word_suffix):
            piece = piece[: -len(self.word_suffix)]
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
    for probe, ids in zip(_PROBES, _encode_ids(tokenizer, list(_PROBES)), strict=True):
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


@dataclass(frozen=True)
class Encoding:
    """One text's tokens.

    Attributes:
        ids: int32 [T].
        ends: int32 [T], UTF-8 bytes of the text consumed after each token; never decreasing; a BOS has 0. Where
            tokens share a piece of text that cannot be divided among them exactly, all of them have its end, so that
            the last of several equal ends is always a true boundary.
        lossy: the tokens do not spell the text exactly (the tokenizer normalises); ends come from character offsets.
    """

    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    lossy: bool = False


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
    for index, (text, ids) in enumerate(zip(texts, _encode_ids(tokenizer, texts), strict=True)):
        ends = _exact_ends(table, ids, text.encode("utf-8"))
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


def _exact_ends(table: TokenTable, ids: Sequence[int], text: bytes) -> npt.NDArray[np.int32] | None:
    """Cumulative byte lengths where the tokens spell `text`, or `text` after one dummy prefix space; else None."""
    joined = table.joined(ids)
    prefix = len(joined) - len(text)
    if prefix not in (0, 1) or joined != b" " * prefix + text:
        return None
    ends = np.cumsum(table.byte_lengths[np.asarray(ids, np.int64)], dtype=np.int32)
    return np.maximum(ends - np.int32(prefix), np.int32(0))


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Number of tokens of each text as `encode_batch` encodes it, without a BOS; no lone surrogates."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return list(map(len, _encode_ids(tokenizer, texts)))
    with _plain_backend(backend):
        return list(map(len, backend.encode_batch_fast(list(texts), add_special_tokens=False)))


def _encode_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # Slow tokenizers have no batch call that is more than this loop. Unless special tokens are split like any other
        # text, they are found in it, and a document that spells </s> would end itself.
        return [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    with _plain_backend(backend):
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


_BACKEND_LOCK = Lock()


@contextmanager
def _plain_backend(backend: Any) -> Iterator[None]:
    """Encodes whole texts as nothing but text: no truncation, no padding, no special tokens, no trimmed offsets.

    One thread at a time, because this changes the backend that all of them share.
    """
    with _BACKEND_LOCK:
        backend.no_truncation()
        backend.no_padding()
        special, post_processor = backend.encode_special_tokens, backend.post_processor
        backend.encode_special_tokens = True  # the backend's name for: special tokens are encoded like any other text
        backend.post_processor = None  # ByteLevel's would cut white space off the offsets
        try:
            yield
        finally:
            backend.encode_special_tokens, backend.post_processor = special, post_processor


def _lossy_ends(
    tokenizer: Any, table: TokenTable, texts: Sequence[str]
) -> Iterator[tuple[list[int], npt.NDArray[np.int32]]]:
    """Ids and ends of texts that the tokens do not spell: from character offsets where the tokenizer has them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        probe, *encoded = _encode_ids(tokenizer, ["a", *texts])
        puts_space = table.joined(probe).startswith(b" ")
        for text, ids in zip(texts, encoded, strict=True):
            yield ids, _ends_until_difference(table, ids, text.encode("utf-8"), puts_space)
        return
    with _plain_backend(backend):
        encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        ids = encoding.ids
        yield ids, _ends_from_offsets(table, ids, np.array(encoding.offsets, np.int64).reshape(-1, 2), text)


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


def _ends_from_offsets(
    table: TokenTable, ids: Sequence[int], offsets: npt.NDArray[np.int64], text: str
) -> npt.NDArray[np.int32]:
    """Byte ends from character offsets int64 [T, 2].

    Tokens whose characters overlap (several tokens within one character) form a group. If a group's bytes spell its
    characters, its ends are exact sums; otherwise all of them are the group's end.
    """
    byte_at = _byte_at_character(text)
    starts, ends = byte_at[offsets[:, 0]], byte_at[_with_composed(offsets, text)]
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
        exact = table.joined(ids[group]) == data[start:end]
        lengths = table.byte_lengths[np.asarray(ids[group], np.int64)]
        ends[group] = start + np.cumsum(lengths) if exact else end
    return ends.astype(np.int32)


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


def _byte_at_character(text: str) -> npt.NDArray[np.int64]:
    """Byte offset of every character and of the text's end, int64 [characters + 1]."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lengths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(lengths)])
