"""A stage's output row by row, decoded, for notebooks and for programs of one's own; stages read whole parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.storage import join, read_bytes
from fusionx.contract.shards.codec import read_distributions, read_token_nll, read_tokens
from fusionx.contract.shards.manifest import MANIFEST_NAME, read_manifest
from fusionx.contract.shards.parts import Ragged, read_part
from fusionx.contract.shards.schema import is_packed

STAGES = {"chunks": "chunk", "logits": "precompute", "tokens": "align", "aligned": "align"}
"""Kind of a folder -> the command that makes it."""


def read_shards(folder: str, split: str | None = None) -> Iterator[dict[str, Any]]:
    """The chunks of a finished folder (chunks, a source's logits, tokens, aligned), in order.

    Args:
        split: `train`, `validation` or `test`; None: all.

    Yields:
        The plain columns as they are (`doc_id`, `chunk`, `text_hash`, `domain`, `text`, `nll`, `nll_bytes`), and where
        the kind has them: `input_ids`, `ends` int32 [T]; `ids` int32 [T, k], the most probable first, filled up with
        -1, `logprobs` float32 [T, k] (nats, filled up with -inf), `tail` float32 [T], the probability of all other
        tokens; `token_nll` float32 [T], nats of the next token, of no meaning at the last place; `status` uint8 [T].
        What stands at place l of a distribution is of token l + 1. k is the most entries that a place of the part has.

    Raises:
        DataError: the folder is unfinished, a part is missing or damaged, or there is no such split.
    """
    path = join(folder, MANIFEST_NAME)
    try:
        kind = str(json.loads(read_bytes(path))["kind"])
        stage = STAGES[kind]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError("A manifest cannot be read.", file=path, found=repr(error)) from None
    manifest = read_manifest(folder, kind, stage)
    parts = manifest.parts if split is None else manifest.parts_of(split)
    if not parts:
        there = ", ".join(dict.fromkeys(part.split for part in manifest.parts))
        raise DataError("A folder has no part of this split.", file=folder, field="split", found=split, expected=there)
    for part in parts:
        table, _ = read_part(join(folder, part.name), kind, sha256=part.sha256)
        arrays = _arrays(table)
        plain = [
            name for name in table.column_names if name not in arrays and not is_packed(table.schema.field(name).type)
        ]
        for row, content in enumerate(table.select(plain).to_pylist()):
            yield {**content, **{name: of(row) for name, of in arrays.items()}}


def _arrays(table: pa.Table) -> dict[str, Callable[[int], Any]]:
    """By column what gives a row's values."""
    found: dict[str, Callable[[int], Any]] = {}
    offsets = None
    if "input_ids" in table.column_names:
        input_ids, ends = read_tokens(table)
        offsets = input_ids.offsets
        found |= {"input_ids": input_ids.row, "ends": ends.row}
    if "status" in table.column_names:
        status = Ragged.from_column(table.column("status"))
        offsets = status.offsets
        found["status"] = status.row
    if "logprobs" in table.column_names and offsets is not None:
        said = read_distributions(table)
        ids, logprobs = said.padded(max(1, said.k))
        values = {"ids": ids, "logprobs": logprobs.astype("float32"), "tail": said.tail.astype("float32")}
        if "missed_nll" in table.column_names:
            values["token_nll"] = read_token_nll(table, said)
        for name, of in values.items():
            found[name] = partial(_row, of, offsets)
    return found


def _row(values: npt.NDArray[Any], offsets: npt.NDArray[np.integer], row: int) -> npt.NDArray[Any]:
    return values[offsets[row] : offsets[row + 1]]
