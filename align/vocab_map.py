"""The vocabulary map: for every source token the one target token that receives its probability.

Equal bytes always map to each other and special tokens map by role; the three modes differ in what happens to the
rest: `mined` takes the target token at minimum edit distance (MinED, paper section 3.1), `first-token` the first
target token of the source token's text, `exact` drops it. Applying a map to distributions is `align.projection`.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from align.edit import bytes_as_text, text_of, token_distance
from contract.errors import DataError
from contract.storage import read_bytes, write_bytes
from contract.tokenization import ROLES, TokenTable, encode_batch

Mode = Literal["mined", "exact", "first-token"]
DROPPED = -1

_SCHEMA_VERSION = 1
_METADATA_KEY = b"fusionx.vocab_map"
_BLOCK_PAIRS = 1 << 23
"""Source-target pairs compared at a time: bounds the memory of one block to some tens of MB."""

FirstTokenEncoder = Callable[[Sequence[str]], Sequence[int]]
"""Texts -> the id of the target token that begins each of them inside a running text, -1 where that is unknown."""


class MapKind(IntEnum):
    """Why a source token maps where it does."""

    DROPPED = 0
    EXACT = 1
    SPECIAL = 2
    BYTE = 3
    EDITED = 4
    FIRST_TOKEN = 5


@dataclass(frozen=True)
class VocabMap:
    """A map from Vs source ids to target ids.

    Attributes:
        target_ids: int32 [Vs], the target id, or -1 where the probability is dropped (it joins the tail).
        kind: uint8 [Vs], a `MapKind`; BYTE is an equality in which either token is a byte-fallback token.
        distance: int32 [Vs], edit distance between the two tokens (see `align.edit`), 0 for equal and special ones,
            -1 for dropped ones.
        mode: the rule for tokens without an equal.
        source_fingerprint, target_fingerprint: of the two tokenizers.
    """

    target_ids: npt.NDArray[np.int32]
    kind: npt.NDArray[np.uint8]
    distance: npt.NDArray[np.int32]
    mode: Mode
    source_fingerprint: str
    target_fingerprint: str

    def counts(self) -> dict[str, int]:
        """Number of source ids (holes count as dropped) per kind."""
        return {kind.name.lower(): int(np.count_nonzero(self.kind == kind)) for kind in MapKind}

    def save(self, path: str | Path) -> None:
        """Writes the map as one Parquet file, metadata in the footer; the file appears whole or not at all."""
        metadata = {
            "schema_version": _SCHEMA_VERSION,
            "mode": self.mode,
            "source_fingerprint": self.source_fingerprint,
            "target_fingerprint": self.target_fingerprint,
        }
        table = pa.table({"target_ids": self.target_ids, "kind": self.kind, "distance": self.distance})
        table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> VocabMap:
        """Reads a map that `save` wrote.

        Raises:
            DataError: the file is missing, damaged, or no vocabulary map of this version.
        """
        try:
            table = pq.read_table(pa.BufferReader(read_bytes(path)), page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, type(error).__name__) from error
        metadata: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"{}"))
        if metadata.get("schema_version") != _SCHEMA_VERSION or metadata["mode"] not in get_args(Mode):
            raise _unreadable(path, f"schema version {metadata.get('schema_version')}")
        return cls(
            table["target_ids"].to_numpy().astype(np.int32),
            table["kind"].to_numpy().astype(np.uint8),
            table["distance"].to_numpy().astype(np.int32),
            metadata["mode"],
            metadata["source_fingerprint"],
            metadata["target_fingerprint"],
        )

    @classmethod
    def load_if_valid(cls, path: str | Path, source: TokenTable, target: TokenTable, mode: Mode) -> VocabMap | None:
        """The map at `path` if it is whole and of these two tokenizers and this mode, else None: make it anew."""
        try:
            found = cls.load(path)
        except DataError:
            return None
        wanted = (source.fingerprint, target.fingerprint, mode, source.size)
        same = (found.source_fingerprint, found.target_fingerprint, found.mode, len(found.target_ids)) == wanted
        return found if same else None


def _unreadable(path: str | Path, found: str) -> DataError:
    return DataError(
        "The vocabulary map cannot be read.",
        file=path,
        found=found,
        expected=f"a vocabulary map, schema version {_SCHEMA_VERSION}",
        remedy="delete the file and run the align stage again",
    )


def identity_map(table: TokenTable, mode: Mode) -> VocabMap:
    """The map of a tokenizer onto itself: every id keeps its own, special tokens too; only holes are dropped."""
    kept = np.array([piece is not None for piece in table.token_bytes], bool)
    kept[list(table.special_role)] = True
    kind = np.full(table.size, MapKind.EXACT, np.uint8)
    kind[list(table.byte_fallback)] = MapKind.BYTE
    kind[list(table.special_role)] = MapKind.SPECIAL
    kind[~kept] = MapKind.DROPPED
    ids = np.where(kept, np.arange(table.size), DROPPED).astype(np.int32)
    return VocabMap(ids, kind, np.where(kept, 0, -1).astype(np.int32), mode, table.fingerprint, table.fingerprint)


def build_vocab_map(source: TokenTable, target: TokenTable, mode: Mode, target_tokenizer: Any = None) -> VocabMap:
    """Maps every source id to a target id.

    1. Special tokens (bos, eos, pad, unk) map to the target's token of the same role, else they are dropped; no other
       token ever maps onto a special one.
    2. Equal bytes map to each other. Of several target ids with the same bytes a normal token is preferred to a
       byte-fallback token, then the lowest id; that one stands for all of them below, too.
    3. The rest, by `mode`:
       - `mined`: the target token at minimum edit distance (`align.edit`: characters, or bytes where either token is
         no valid UTF-8 - so a text token compares with a byte-only token byte by byte, and the two kinds of distance
         are compared as plain numbers). Ties: the longer common prefix in bytes, then the lower id.
       - `first-token`: the target token that begins the source token's text in a running text, as `target_tokenizer`
         encodes it (see `first_token_encoder`). Where none is given or the token is no valid UTF-8: the longest
         target token that is a prefix of its bytes. The longest prefix alone is what BPE would choose for only 79 %
         of Llama-3's tokens in Mistral's vocabulary (74 % the other way round), so the tokenizer comes first.
       - `exact`: dropped.

    Tokens of no bytes (holes, empty pieces) are dropped and never mapped onto.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r} is none of {get_args(Mode)}")
    target_ids = np.full(source.size, DROPPED, np.int32)
    kind = np.full(source.size, MapKind.DROPPED, np.uint8)
    distance = np.full(source.size, -1, np.int32)
    representative = _representatives(target)
    rest = []
    for token, piece in enumerate(source.token_bytes):
        role = source.special_role.get(token)
        if role is not None:
            same_role = target.role_id(role) if role in ROLES else None
            if same_role is not None:
                target_ids[token], kind[token], distance[token] = same_role, MapKind.SPECIAL, 0
        elif piece and piece in representative:
            equal = representative[piece]
            is_byte = token in source.byte_fallback or equal in target.byte_fallback
            target_ids[token], distance[token] = equal, 0
            kind[token] = MapKind.BYTE if is_byte else MapKind.EXACT
        elif piece:
            rest.append(token)
    pieces = [source.token_bytes[token] or b"" for token in rest]
    if mode == "mined" and representative:
        target_ids[rest], distance[rest] = _nearest(pieces, representative)
        kind[rest] = MapKind.EDITED
    elif mode == "first-token":
        encoder = None if target_tokenizer is None else first_token_encoder(target_tokenizer, target)
        firsts = _first_tokens(pieces, target, representative, encoder)
        for token, piece, first in zip(rest, pieces, firsts, strict=True):
            if first != DROPPED:
                target_ids[token], kind[token] = first, MapKind.FIRST_TOKEN
                distance[token] = token_distance(piece, target.token_bytes[first] or b"")
    return VocabMap(target_ids, kind, distance, mode, source.fingerprint, target.fingerprint)


def _representatives(target: TokenTable) -> dict[bytes, int]:
    """Distinct bytes -> the one id that stands for them: a normal token before a byte-fallback one, the lowest id."""
    chosen: dict[bytes, int] = {}
    for token, piece in enumerate(target.token_bytes):
        if piece and token not in target.special_role and token not in target.byte_fallback:
            chosen.setdefault(piece, token)
    for token in sorted(target.byte_fallback):
        piece = target.token_bytes[token]
        if piece:
            chosen.setdefault(piece, token)
    return chosen


# --- first-token ------------------------------------------------------------------------------------------------


def first_token_encoder(tokenizer: Any, table: TokenTable) -> FirstTokenEncoder:
    """The first token of a text inside a running text, found by encoding it behind an anchor.

    An anchor ("a" before white space, a line break before anything else) takes the place of the preceding text, so no
    dummy prefix space or beginning-of-text rule touches the text itself. Where the tokenizer draws no boundary
    between anchor and text, another anchor is tried; -1 where none serves.
    """

    def first_tokens(texts: Sequence[str]) -> list[int]:
        found = [DROPPED] * len(texts)
        open_texts = list(range(len(texts)))
        for usual, before_space in (("\n", "a"), ("a", "\n"), (")", ")")):
            anchored = [(before_space if texts[index][:1].isspace() else usual) + texts[index] for index in open_texts]
            for index, encoding in zip(open_texts, encode_batch(tokenizer, table, anchored, False), strict=True):
                found[index] = _token_after(encoding.ids, encoding.ends, table)
            open_texts = [index for index in open_texts if found[index] == DROPPED]
        return found

    return first_tokens


def _token_after(ids: npt.NDArray[np.int32], ends: npt.NDArray[np.int32], table: TokenTable) -> int:
    """The token that begins behind a one-byte anchor, -1 where no boundary is there or the token has no bytes."""
    behind = int(np.searchsorted(ends, 1, side="right"))
    if behind == 0 or behind == len(ids) or ends[behind - 1] != 1:
        return DROPPED
    token = int(ids[behind])
    return token if table.token_bytes[token] else DROPPED


def _first_tokens(
    pieces: Sequence[bytes],
    target: TokenTable,
    representative: dict[bytes, int],
    encoder: FirstTokenEncoder | None,
) -> list[int]:
    texts = [text_of(piece) for piece in pieces]
    found = [DROPPED] * len(pieces)
    if encoder is not None:
        encodable = [index for index, text in enumerate(texts) if text is not None]
        for index, first in zip(encodable, encoder([texts[index] or "" for index in encodable]), strict=True):
            if first != DROPPED and first not in target.special_role:
                # The same bytes always go to the same id.
                found[index] = representative[target.token_bytes[first] or b""]
    return [
        _longest_prefix(piece, representative) if first == DROPPED else first
        for piece, first in zip(pieces, found, strict=True)
    ]


def _longest_prefix(piece: bytes, representative: dict[bytes, int]) -> int:
    for length in range(len(piece), 0, -1):
        if piece[:length] in representative:
            return representative[piece[:length]]
    return DROPPED


# --- MinED ------------------------------------------------------------------------------------------------------


class _Spellings:
    """Tokens of one side in the unit of one comparison (characters or bytes), grouped by length."""

    def __init__(self, pieces: Sequence[bytes], rows: Sequence[int], spell: Callable[[bytes], str]) -> None:
        self.texts = [spell(pieces[row]) for row in rows]
        by_length: dict[int, list[int]] = defaultdict(list)
        for position, text in enumerate(self.texts):
            by_length[len(text)].append(position)
        self.by_length = {length: np.array(members) for length, members in sorted(by_length.items())}
        self.rows = np.array(rows, np.int64)


class _Padded:
    """Tokens as a zero-padded byte matrix uint8 [N, W] with lengths int32 [N], for common prefixes."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        width = max(map(len, pieces), default=0)
        self.matrix = np.frombuffer(b"".join(piece.ljust(width, b"\0") for piece in pieces), np.uint8)
        self.matrix = self.matrix.reshape(len(pieces), width)
        self.lengths = np.fromiter(map(len, pieces), np.int32, len(pieces))


def _nearest(
    pieces: Sequence[bytes], representative: dict[bytes, int]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Target id and distance, int32 [N] each, of the nearest representative of every piece; equal to brute force."""
    targets, ids = list(representative), np.fromiter(representative.values(), np.int64, len(representative))
    search = _Search(pieces, targets, ids)
    source_text = [row for row, piece in enumerate(pieces) if text_of(piece) is not None]
    source_raw = [row for row, piece in enumerate(pieces) if text_of(piece) is None]
    target_text = [row for row, piece in enumerate(targets) if text_of(piece) is not None]
    target_raw = [row for row, piece in enumerate(targets) if text_of(piece) is None]
    search.compare(source_text, target_text, lambda piece: piece.decode("utf-8"))
    search.compare(source_text, target_raw, bytes_as_text)
    search.compare(source_raw, range(len(targets)), bytes_as_text)
    return search.target_ids(), search.distance.astype(np.int32)


class _Search:
    """Running best (distance, common prefix, id) of every source token over the blocks compared so far."""

    def __init__(self, pieces: Sequence[bytes], targets: Sequence[bytes], ids: npt.NDArray[np.int64]) -> None:
        self.pieces, self.targets, self.ids = pieces, targets, ids
        self.source_bytes, self.target_bytes = _Padded(pieces), _Padded(targets)
        self.distance = np.full(len(pieces), np.iinfo(np.int32).max, np.int64)
        self.preference = np.full(len(pieces), -1, np.int64)  # common prefix above, complement of the id below

    def target_ids(self) -> npt.NDArray[np.int32]:
        return (_ID_MASK - (self.preference & _ID_MASK)).astype(np.int32)

    def compare(self, source_rows: Sequence[int], target_rows: Sequence[int], spell: Callable[[bytes], str]) -> None:
        """Compares two sets of tokens in one unit, nearest lengths first.

        A distance is at least the difference of the lengths, so a source token is done when that difference exceeds
        its best distance (at equality a tie is still possible).
        """
        sources, targets = _Spellings(self.pieces, source_rows, spell), _Spellings(self.targets, target_rows, spell)
        for length, members in sources.by_length.items():
            for other in sorted(targets.by_length, key=lambda other: abs(other - length)):
                active = members[self.distance[sources.rows[members]] >= abs(other - length)]
                if not len(active):
                    break
                for rows, columns in _blocks(active, targets.by_length[other]):
                    self._compare_block(sources, rows, targets, columns)

    def _compare_block(
        self, sources: _Spellings, rows: npt.NDArray[np.int64], targets: _Spellings, columns: npt.NDArray[np.int64]
    ) -> None:
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist

        queries = [sources.texts[row] for row in rows]
        choices = [targets.texts[column] for column in columns]
        source_rows, target_rows = sources.rows[rows], targets.rows[columns]
        longest = max(len(queries[0]), len(choices[0]))  # all queries are of one length, all choices too
        cutoff = min(int(self.distance[source_rows].max()), longest)
        dtype = np.uint8 if cutoff < 255 else np.int32  # beyond the cutoff, cdist reports cutoff + 1
        distances = cdist(queries, choices, scorer=Levenshtein.distance, score_cutoff=cutoff, dtype=dtype, workers=1)
        lowest = distances.min(axis=1)
        hopeful = np.flatnonzero(lowest <= np.minimum(self.distance[source_rows], cutoff))
        tied_row, tied_column = np.nonzero(distances[hopeful] == lowest[hopeful, None])
        prefer = self._preference(source_rows[hopeful[tied_row]], target_rows[tied_column])
        if not len(prefer):
            return
        first_of_row = np.searchsorted(tied_row, np.arange(len(hopeful)))
        preferred = np.maximum.reduceat(prefer, first_of_row)
        self._keep(source_rows[hopeful], lowest[hopeful].astype(np.int64), preferred)

    def _keep(
        self, rows: npt.NDArray[np.int64], distance: npt.NDArray[np.int64], preference: npt.NDArray[np.int64]
    ) -> None:
        better = (distance < self.distance[rows]) | (
            (distance == self.distance[rows]) & (preference > self.preference[rows])
        )
        self.distance[rows[better]] = distance[better]
        self.preference[rows[better]] = preference[better]

    def _preference(
        self, source_rows: npt.NDArray[np.int64], target_rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """int64 per pair, larger is preferred: the common prefix in bytes, then the lower id."""
        prefix = np.empty(len(source_rows), np.int64)
        step = max(1, _BLOCK_PAIRS // max(1, self.source_bytes.matrix.shape[1]))
        for start in range(0, len(source_rows), step):
            chunk = slice(start, start + step)
            prefix[chunk] = _common_prefix(self.source_bytes, source_rows[chunk], self.target_bytes, target_rows[chunk])
        return (prefix << 32) | (_ID_MASK - self.ids[target_rows])


_ID_MASK = (1 << 32) - 1


def _common_prefix(
    first: _Padded, first_rows: npt.NDArray[np.int64], second: _Padded, second_rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Length in bytes of the common prefix of every pair of rows."""
    shorter = np.minimum(first.lengths[first_rows], second.lengths[second_rows]).astype(np.int64)
    width = int(shorter.max(initial=0))
    differs = first.matrix[first_rows, :width] != second.matrix[second_rows, :width]
    at = np.where(differs.any(axis=1), differs.argmax(axis=1), width) if width else np.zeros(len(shorter), np.int64)
    return np.minimum(at, shorter)


def _blocks(
    rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    width = min(len(columns), _BLOCK_PAIRS)
    height = max(1, _BLOCK_PAIRS // width)
    for top in range(0, len(rows), height):
        for left in range(0, len(columns), width):
            yield rows[top : top + height], columns[left : left + width]
