"""Shards: atomic Parquet parts that carry their provenance in the footer, and the checked reader.

A part's bytes depend on its unit's data and config only. Pages carry CRC-32 checksums, which every read verifies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusionx.contract.config import changed_fields
from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.storage import open_file, read_bytes, write_bytes
from fusionx.contract.shards.schema import DICTIONARY_KEY, SCHEMA_VERSION, schema_of, widths

_FOOTER_KEY = b"fusionx"
_FOOTER_HASH_KEY = b"fusionx_sha256"
"""The page checksums leave the footer out; this is the hash of what we keep in it."""
_ROW_GROUP_ROWS = 1024
_PAGE_BYTES = 1 << 24
_BYTE_STREAM_SPLIT = ("ids", "logprobs", "tail", "missed_nll")
"""Columns whose bytes compress better one stream per byte of the value; long pages make long streams."""
_ZSTD_LEVEL = 3
_ZSTD_LEVELS = {"ids": 6, "logprobs": 1}
"""Of noise-like bytes a higher level makes no smaller files, only slower ones."""


@dataclass(frozen=True)
class Provenance:
    """What a part was made from: everything that decides its bytes.

    `kind` names the schema, `config` the stage's content fields, `inputs` the SHA-256 of every input part,
    `identity` what else the data depends on (source id and revision, tokenizer fingerprints).
    """

    kind: str
    split: str
    config: dict[str, Any]
    inputs: dict[str, str]
    identity: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class PartEntry:
    """One part as the manifest lists it."""

    name: str
    split: str
    rows: int
    tokens: int
    bytes: int
    sha256: str
    stats: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PartInfo:
    """A part as found on disk: its footer and its entry."""

    provenance: Provenance
    entry: PartEntry


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def write_part(
    path: str, table: pa.Table, provenance: Provenance, tokens: int, stats: dict[str, Any] | None = None
) -> PartEntry:
    """Writes one part whole or not at all, with provenance, row and token counts in its footer.

    `stats` are facts about the rows that the manifest sums up (for example skipped documents or status counts).
    """
    schema = schema_of(provenance.kind, widths(table.schema))
    counted = {"rows": table.num_rows, "tokens": tokens, "stats": stats or {}}
    footer = {**provenance.to_json(), **counted, "widths": widths(schema)}
    encoded = json.dumps(footer, sort_keys=True, separators=(",", ":")).encode()
    metadata = {_FOOTER_KEY: encoded}
    if table.schema.metadata and DICTIONARY_KEY in table.schema.metadata:
        metadata[DICTIONARY_KEY] = table.schema.metadata[DICTIONARY_KEY]
    metadata[_FOOTER_HASH_KEY] = _footer_hash(metadata)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, **_parquet_options(schema)) as writer:
        writer.write_table(table.cast(schema), row_group_size=_ROW_GROUP_ROWS)
        writer.add_key_value_metadata(metadata)
    data = sink.getvalue().to_pybytes()
    write_bytes(path, data)
    return _entry(path, footer, data)


def _parquet_options(schema: pa.Schema) -> dict[str, Any]:
    lists = {field.name for field in schema if pa.types.is_list(field.type)}
    paths = {name: f"{name}.list.element" if name in lists else name for name in schema.names}
    return {
        "compression": "zstd",
        "compression_level": {path: _ZSTD_LEVELS.get(name, _ZSTD_LEVEL) for name, path in paths.items()},
        "use_dictionary": ["domain"] if "domain" in paths else False,
        "use_byte_stream_split": [paths[name] for name in _BYTE_STREAM_SPLIT if name in paths],
        "data_page_size": _PAGE_BYTES,
        "write_page_checksum": True,
        "write_statistics": False,
        "store_schema": False,  # it would hold the metadata a second time
    }


def inspect_part(path: str, sha256: str | None = None) -> PartInfo:
    """Reads a part's footer and verifies every page checksum, and the whole file where its `sha256` is known.

    Raises:
        DataError: the file is missing, cut short or damaged, or is no part of this project.
    """
    data = read_bytes(path)
    footer, _ = _read_whole(data, path, sha256, None)
    return PartInfo(_provenance(footer, path), _entry(path, footer, data))


def read_provenance(path: str) -> Provenance:
    """What a part was made from, by its footer alone: a few kilobytes, however long the part is; no page is read.

    Raises:
        DataError: the file is missing or cut short, its footer is damaged, or it is no part of this project.
    """
    with open_file(path) as file:
        try:
            footer = _footer(pq.ParquetFile(file), path)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise _damaged(path, error) from None
    return _provenance(footer, path)


def read_part(
    path: str, kind: str, columns: Sequence[str] | None = None, sha256: str | None = None
) -> tuple[pa.Table, Provenance]:
    """Reads a part of the given kind, verifying schema version, checksums, and `sha256` where the caller knows it.

    Raises:
        DataError: missing, damaged, another kind, or another schema version.
    """
    footer, table = _read_whole(read_bytes(path), path, sha256, columns)
    provenance = _provenance(footer, path)
    if provenance.kind != kind:
        raise DataError("A part is of another kind.", file=path, field="kind", found=provenance.kind, expected=kind)
    return table, provenance


def _read_whole(
    data: bytes, path: str, sha256: str | None, columns: Sequence[str] | None
) -> tuple[dict[str, Any], pa.Table]:
    """Our footer and the table, after every check that the bytes alone allow."""
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise _damaged(path, ValueError("its SHA-256 is not the one that the manifest lists"))
    try:
        source = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        footer = _footer(source, path)
        if footer["schema_version"] == SCHEMA_VERSION:
            schema = schema_of(footer["kind"], footer["widths"])
            if source.schema_arrow.remove_metadata() != schema:
                raise ValueError("its columns are not those of its kind")
        table = source.read(columns=list(columns) if columns else None)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from None
    if table.num_rows != footer["rows"]:
        raise _damaged(path, ValueError(f"{table.num_rows} rows, its footer says {footer['rows']}"))
    return footer, table


def sha256_of(path: str) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


def differences(found: Provenance, expected: Provenance) -> list[str]:
    """Every field in which two provenances differ, as `field: found X, expected Y`."""
    return changed_fields(found.to_json(), expected.to_json())


@dataclass(frozen=True)
class Ragged:
    """A list column as two arrays: row i is `values[offsets[i]:offsets[i+1]]`. No Python loop, no copy.

    The values of a packed column are uint8 [n, width].
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_column(cls, column: pa.ChunkedArray) -> Ragged:
        array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
        offsets = array.offsets.to_numpy()
        values = array.flatten()
        if pa.types.is_fixed_size_binary(values.type):
            width = values.type.byte_width
            packed = np.frombuffer(values.buffers()[1] or b"", np.uint8)[: (values.offset + len(values)) * width]
            return cls(packed.reshape(-1, width)[values.offset :], offsets - offsets[0])
        return cls(values.to_numpy(zero_copy_only=False), offsets - offsets[0])

    def row(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


def list_column(rows: Sequence[np.ndarray], value_type: pa.DataType) -> pa.ListArray:
    """A list column from one array per row; the inverse of `Ragged.from_column`."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([row.size for row in rows], out=offsets[1:])
    flat = np.concatenate([row.reshape(-1) for row in rows]) if rows else np.zeros(0)
    values = pa.array(flat.astype(value_type.to_pandas_dtype(), copy=False), type=value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _entry(path: str, footer: dict[str, Any], data: bytes) -> PartEntry:
    name = path.rsplit("/", 1)[-1]
    digest = hashlib.sha256(data).hexdigest()
    return PartEntry(name, footer["split"], footer["rows"], footer["tokens"], len(data), digest, footer["stats"])


def _footer(source: pq.ParquetFile, path: str) -> dict[str, Any]:
    metadata = source.schema_arrow.metadata or {}
    if _FOOTER_KEY not in metadata:
        raise DataError("A Parquet file carries no Fusion-X footer.", file=path, remedy="move it out of the way")
    if metadata.get(_FOOTER_HASH_KEY) != _footer_hash(metadata):
        raise ValueError("its footer changed")
    return json.loads(metadata[_FOOTER_KEY])


def _footer_hash(metadata: dict[bytes, bytes]) -> bytes:
    return hashlib.sha256(metadata[_FOOTER_KEY] + metadata.get(DICTIONARY_KEY, b"")).hexdigest().encode()


def _provenance(footer: dict[str, Any], path: str) -> Provenance:
    if footer["schema_version"] != SCHEMA_VERSION:
        raise DataError(
            "A part was written under another schema version.",
            file=path,
            field="schema_version",
            found=footer["schema_version"],
            expected=SCHEMA_VERSION,
            remedy="make it again with this version (--overwrite)",
        )
    return Provenance(**{name: footer[name] for name in Provenance.__dataclass_fields__})


def _damaged(path: str, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    return DamageError(
        "A part is damaged: it was cut short or its bytes changed.",
        file=path,
        found=(str(error).strip() or type(error).__name__).splitlines()[0],
        expected="a whole Parquet file whose page checksums hold",
        remedy="run the stage that writes it again; only damaged and missing parts are rewritten",
    )


def match_rows(left: pa.Table, right: pa.Table, left_path: str, right_path: str) -> pa.Table:
    """The rows of `right` whose keys `left` has, in the order of `left`.

    Raises:
        DataError: a key is missing on the right, or the two sides hold another text under the same key.
    """
    rights = {key: row for row, key in enumerate(_keys(right))}
    matched = np.empty(left.num_rows, dtype=np.int64)
    for row, key in enumerate(_keys(left)):
        if key not in rights:
            raise DataError(
                "A chunk is missing from a part.",
                file=right_path,
                field="(doc_id, chunk)",
                found=f"no row {key}",
                expected=f"every row of {left_path}",
                remedy="run the stage that writes it again with --overwrite",
            )
        matched[row] = rights[key]
    left_hashes = left.column("text_hash").to_numpy()
    if right.num_rows != len(matched) or (matched != np.arange(len(matched))).any():  # taking rows is slow
        right = right.take(matched)
    right_hashes = right.column("text_hash").to_numpy()
    wrong = np.flatnonzero(left_hashes != right_hashes)
    if len(wrong):
        raise DataError(
            "Two parts hold different texts under one key.",
            file=f"{left_path} and {right_path}",
            field="text_hash",
            found=f"{right_hashes[wrong[0]]} in {right_path}, (doc_id, chunk) {_keys(left)[wrong[0]]}",
            expected=f"{left_hashes[wrong[0]]}, as in {left_path}",
            remedy="one of them was made from another corpus: make it again with --overwrite",
        )
    return right


def _keys(table: pa.Table) -> list[tuple[int, int]]:
    return list(zip(table.column("doc_id").to_pylist(), table.column("chunk").to_pylist(), strict=True))
