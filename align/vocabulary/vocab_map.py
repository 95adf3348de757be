"""The vocabulary map: for every source token the one target token that receives its probability.

Equal bytes always map to each other and special tokens map by role; the three modes differ in what happens to the
rest: `mined` takes the target token at minimum edit distance (MinED, paper section 3.1), `first-token` the first
target token of the source token's text, `exact` drops it. The search for the nearest is
`align.vocabulary.nearest_token`, applying a map to distributions `align.projection`, showing it to a person
`align.explain`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fusionx.align.vocabulary.edit_distance import text_of, token_distance
from fusionx.contract.errors import DataError
from fusionx.contract.files.storage import read_bytes, write_bytes
from fusionx.contract.tokens.encoding import encode_batch
from fusionx.contract.tokens.token_table import TokenTable
from fusionx.contract.tokens.tokenizer import ROLES

if TYPE_CHECKING:
    from fusionx.align.vocabulary.nearest_token import Nearest

Mode = Literal["mined", "exact", "first-token"]
Ties = Literal["first", "split"]
DROPPED = -1
MAX_TIES = 8
"""Target tokens that one source token is split over at most."""

_SCHEMA_VERSION = 1
_METADATA_KEY = b"fusionx.vocab_map"

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
        distance: int32 [Vs], edit distance between the two tokens (see `edit_distance`), 0 for equal and special ones,
            -1 for dropped ones.
        mode: the rule for tokens without an equal.
        source_fingerprint, target_fingerprint: of the two tokenizers.
        split: with ties "split" all that are equally near, int32 [Vs, n] padded with -1, `target_ids` first in every
            row; they share the probability equally. None with ties "first": everything goes to `target_ids`.
    """

    target_ids: npt.NDArray[np.int32]
    kind: npt.NDArray[np.uint8]
    distance: npt.NDArray[np.int32]
    mode: Mode
    source_fingerprint: str
    target_fingerprint: str
    split: npt.NDArray[np.int32] | None = None

    @property
    def ties(self) -> Ties:
        return "first" if self.split is None else "split"

    @property
    def rows(self) -> npt.NDArray[np.int32]:
        """Where a source id's probability goes, in equal shares, for either kind of ties: [Vs, n] padded with -1."""
        return self.target_ids[:, None] if self.split is None else self.split

    def counts(self) -> dict[str, int]:
        """Number of source ids (holes count as dropped) per kind."""
        return {kind.name.lower(): int(np.count_nonzero(self.kind == kind)) for kind in MapKind}

    def save(self, path: str | Path) -> None:
        """Writes the map as one Parquet file, metadata in the footer; the file appears whole or not at all."""
        metadata = {
            "schema_version": _SCHEMA_VERSION,
            "mode": self.mode,
            "ties": self.ties,
            "source_fingerprint": self.source_fingerprint,
            "target_fingerprint": self.target_fingerprint,
        }
        columns: dict[str, Any] = {name: getattr(self, name) for name in ("target_ids", "kind", "distance")}
        if self.split is not None:
            columns["split"] = pa.FixedSizeListArray.from_arrays(self.split.reshape(-1), self.split.shape[1])
        table = pa.table(columns)
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
        split = None
        if "split" in table.column_names:
            split = table["split"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        return cls(
            table["target_ids"].to_numpy().astype(np.int32),
            table["kind"].to_numpy().astype(np.uint8),
            table["distance"].to_numpy().astype(np.int32),
            metadata["mode"],
            metadata["source_fingerprint"],
            metadata["target_fingerprint"],
            split,
        )

    @classmethod
    def load_if_valid(
        cls, path: str | Path, source: TokenTable, target: TokenTable, mode: Mode, ties: Ties = "first"
    ) -> VocabMap | None:
        """The map at `path` if it is whole and of these two tokenizers and this mode, else None: make it anew."""
        try:
            found = cls.load(path)
        except DataError:
            return None
        wanted = (source.fingerprint, target.fingerprint, mode, ties, source.size)
        same = (found.source_fingerprint, found.target_fingerprint, found.mode, found.ties, len(found.target_ids))
        return found if same == wanted else None


def _unreadable(path: str | Path, found: str) -> DataError:
    return DataError(
        "The vocabulary map cannot be read.",
        file=path,
        found=found,
        expected=f"a vocabulary map, schema version {_SCHEMA_VERSION}",
        remedy="delete the file and run the align stage again",
    )


def identity_map(table: TokenTable, mode: Mode, ties: Ties = "first") -> VocabMap:
    """The map of a tokenizer onto itself: every id keeps its own, special tokens too; only holes are dropped."""
    kept = np.array([piece is not None for piece in table.token_bytes], bool)
    kept[list(table.special_role)] = True
    kind = np.full(table.size, MapKind.EXACT, np.uint8)
    kind[list(table.byte_fallback)] = MapKind.BYTE
    kind[list(table.special_role)] = MapKind.SPECIAL
    kind[~kept] = MapKind.DROPPED
    ids = np.where(kept, np.arange(table.size), DROPPED).astype(np.int32)
    distance = np.where(kept, 0, -1).astype(np.int32)
    split = ids[:, None] if ties == "split" else None
    return VocabMap(ids, kind, distance, mode, table.fingerprint, table.fingerprint, split)


def build_vocab_map(
    source: TokenTable, target: TokenTable, mode: Mode, target_tokenizer: Any = None, ties: Ties = "first"
) -> VocabMap:
    """Maps every source id to a target id.

    1. Special tokens (bos, eos, pad, unk) map to the target's token of the same role, else they are dropped; no other
       token ever maps onto a special one.
    2. Equal bytes map to each other. Of several target ids with the same bytes a normal token is preferred to a
       byte-fallback token, then the lowest id; that one stands for all of them below, too.
    3. The rest, by `mode`:
       - `mined`: the target token at minimum edit distance (`edit_distance`: characters, or bytes where either token is
         no valid UTF-8 - so a text token compares with a byte-only token byte by byte, and the two kinds of distance
         are compared as plain numbers). Ties: the longer common prefix in bytes, then the lower id. With ties
         "split" the probability is shared equally by all of the nearest, by the first `MAX_TIES` in that order where
         there are more.
       - `first-token`: the target token that begins the source token's text in a running text, as `target_tokenizer`
         encodes it (see `first_token_encoder`). Where none is given or the token is no valid UTF-8: the longest
         target token that is a prefix of its bytes. The longest prefix alone is what BPE would choose for only 79 %
         of Llama-3's tokens in Mistral's vocabulary (74 % the other way round), so the tokenizer comes first.
       - `exact`: dropped.

    Tokens of no bytes (holes, empty pieces) are dropped and never mapped onto.

    Raises:
        ValueError: an unknown mode, or ties to split in a mode that has none.
    """
    if mode not in get_args(Mode) or ties not in get_args(Ties):
        raise ValueError(f"mode {mode!r} is none of {get_args(Mode)}, or ties {ties!r} none of {get_args(Ties)}")
    if ties == "split" and mode != "mined":
        raise ValueError(f"ties can be split in mode 'mined' only, not in {mode!r}")
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
    split = None
    if mode == "mined":
        near = _nearest(pieces, representative, MAX_TIES if ties == "split" else 1)
        target_ids[rest], distance[rest] = near.candidates[:, 0], near.distance
        kind[rest] = np.where(near.ties > 0, MapKind.EDITED, MapKind.DROPPED)
        if ties == "split":
            split = np.full((source.size, MAX_TIES), DROPPED, np.int32)
            split[:, 0], split[rest] = target_ids, near.candidates
    elif mode == "first-token":
        encoder = None if target_tokenizer is None else first_token_encoder(target_tokenizer, target)
        firsts = _first_tokens(pieces, target, representative, encoder)
        for token, piece, first in zip(rest, pieces, firsts, strict=True):
            if first != DROPPED:
                target_ids[token], kind[token] = first, MapKind.FIRST_TOKEN
                distance[token] = token_distance(piece, target.token_bytes[first] or b"")
    return VocabMap(target_ids, kind, distance, mode, source.fingerprint, target.fingerprint, split)


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


def equally_near(source: TokenTable, target: TokenTable, tokens: Sequence[int]) -> list[tuple[list[int], int]]:
    """For each source id the target ids at minimum edit distance in the order of preference (`MAX_TIES` at most), and
    how many there are in all. The ids are of tokens with bytes.
    """
    found = _nearest([source.token_bytes[token] or b"" for token in tokens], _representatives(target), MAX_TIES)
    return [
        ([target_id for target_id in row if target_id != DROPPED], ties)
        for row, ties in zip(found.candidates.tolist(), found.ties.tolist(), strict=True)
    ]


def _nearest(pieces: Sequence[bytes], representative: dict[bytes, int], keep: int) -> Nearest:
    """`align.vocabulary.nearest_token` with target ids in place of indices."""
    from fusionx.align.vocabulary.nearest_token import nearest  # imports and compiles what the other modes do without

    candidates = sorted(representative, key=representative.__getitem__)
    ids = np.array([*(representative[candidate] for candidate in candidates), DROPPED], np.int32)
    found = nearest(pieces, candidates, keep)
    return found._replace(candidates=ids[found.candidates])  # -1, which pads, is the last of `ids`


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
