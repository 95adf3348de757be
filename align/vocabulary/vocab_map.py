"""The vocabulary map: for every source token the one target token that receives its probability.

Equal bytes always map to each other and special tokens map by role; the modes differ in what happens to the rest:
`mined` takes the target token at minimum edit distance (MinED, paper section 3.1), `exact` drops it. The search for the
nearest is `align.vocabulary.nearest_token`, applying a map to distributions `align.projection`, showing it to a person
`align.explain`. The walk (`align.walk`) does without a map.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fusionx.contract.errors import DamageError
from fusionx.contract.files.sealed import sealed, unsealed
from fusionx.contract.files.storage import exists, read_bytes, write_bytes
from fusionx.contract.tokens.token_table import TokenTable
from fusionx.contract.tokens.tokenizer import ROLES

if TYPE_CHECKING:
    from fusionx.align.vocabulary.nearest_token import Nearest

Mode = Literal["mined", "exact"]
DROPPED = -1

_SCHEMA_VERSION = 3
_METADATA_KEY = b"fusionx.vocab_map"
_COLUMNS = ("target_ids", "kind", "distance")
_REMEDY = "delete the file and run the align stage again"


class MapKind(IntEnum):
    """Why a source token maps where it does."""

    DROPPED = 0
    EXACT = 1
    SPECIAL = 2
    BYTE = 3
    EDITED = 4


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
            "columns": self._column_hashes(),
        }
        table = pa.table({name: getattr(self, name) for name in _COLUMNS})
        table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(sealed(metadata)).encode()})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> VocabMap:
        """Reads a map that `save` wrote.

        Raises:
            DataError: the file is missing, damaged, or no vocabulary map of this version.
        """
        data = read_bytes(path)
        try:
            table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
            table.validate(full=True)
            written = json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"{}"))
            columns = {name: table[name].to_numpy() for name in _COLUMNS}
        except (OSError, ValueError, KeyError, RecursionError, pa.ArrowException) as error:
            raise _unreadable(path, f"{type(error).__name__}: {str(error).splitlines()[0]:.200}") from None
        metadata = unsealed(written, path, _REMEDY)
        if metadata.get("schema_version") != _SCHEMA_VERSION or metadata["mode"] not in get_args(Mode):
            raise _unreadable(path, f"schema version {metadata.get('schema_version')}, mode {metadata.get('mode')}")
        found = cls(
            **columns,
            mode=metadata["mode"],
            source_fingerprint=metadata["source_fingerprint"],
            target_fingerprint=metadata["target_fingerprint"],
        )
        if found._column_hashes() != metadata["columns"]:
            raise _unreadable(path, "other values than were written")
        return found

    def _column_hashes(self) -> dict[str, str]:
        """Of name, type and bytes of each column."""
        arrays = {name: getattr(self, name) for name in _COLUMNS}
        return {
            name: f"{array.dtype} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}" for name, array in arrays.items()
        }

    @classmethod
    def load_if_valid(cls, path: str | Path, source: TokenTable, target: TokenTable, mode: Mode) -> VocabMap | None:
        """The map at `path` if it is whole and of these two tokenizers and this mode, else None: make it anew."""
        if not exists(path):
            return None
        try:
            found = cls.load(path)
        except DamageError as error:
            print(f"[align] the vocabulary map is made anew. {error}", file=sys.stderr, flush=True)
            return None
        wanted = (source.fingerprint, target.fingerprint, mode, source.size)
        same = (found.source_fingerprint, found.target_fingerprint, found.mode, len(found.target_ids))
        return found if same == wanted else None


def _unreadable(path: str | Path, found: str) -> DamageError:
    return DamageError(
        "The vocabulary map cannot be read.",
        file=path,
        found=found,
        expected=f"a vocabulary map, schema version {_SCHEMA_VERSION}",
        remedy=_REMEDY,
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
    distance = np.where(kept, 0, -1).astype(np.int32)
    return VocabMap(ids, kind, distance, mode, table.fingerprint, table.fingerprint)


def build_vocab_map(source: TokenTable, target: TokenTable, mode: Mode) -> VocabMap:
    """Maps every source id to a target id.

    1. Special tokens (bos, eos, pad, unk) map to the target's token of the same role, else they are dropped; no other
       token ever maps onto a special one.
    2. Equal bytes map to each other. Of several target ids with the same bytes a normal token is preferred to a
       byte-fallback token, then the lowest id; that one stands for all of them below, too.
    3. The rest, by `mode`:
       - `mined`: the target token at minimum edit distance (`edit_distance`: characters, or bytes where either token is
         no valid UTF-8 - so a text token compares with a byte-only token byte by byte, and the two kinds of distance
         are compared as plain numbers). Ties: the longer common prefix in bytes, then the lower id.
       - `exact`: dropped.

    Tokens of no bytes (holes, empty pieces) are dropped and never mapped onto.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r} is none of {get_args(Mode)}")
    target_ids = np.full(source.size, DROPPED, np.int32)
    kind = np.full(source.size, MapKind.DROPPED, np.uint8)
    distance = np.full(source.size, -1, np.int32)
    representative = target.by_bytes
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
    if mode == "mined":
        near = _nearest(pieces, representative, 1)
        target_ids[rest], distance[rest] = near.candidates[:, 0], near.distance
        kind[rest] = np.where(near.ties > 0, MapKind.EDITED, MapKind.DROPPED)
    return VocabMap(target_ids, kind, distance, mode, source.fingerprint, target.fingerprint)


def equally_near(
    source: TokenTable, target: TokenTable, tokens: Sequence[int], keep: int
) -> list[tuple[list[int], int]]:
    """For each source id the target ids at minimum edit distance in the order of preference (`keep` at most), and how
    many there are in all. The ids are of tokens with bytes.
    """
    found = _nearest([source.token_bytes[token] or b"" for token in tokens], target.by_bytes, keep)
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
