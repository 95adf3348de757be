"""Arrow schemas of every stage's parts. One row is one chunk; (doc_id, chunk) is its key everywhere.

A `packed` column holds a list of fixed-length values per chunk, so that a whole part turns into numpy arrays without a
loop; `contract.shards.codec` alone knows what their bytes mean. Their length is a part's own: the fewest bytes that
hold it.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa

SCHEMA_VERSION = 2

_KEY = [pa.field("doc_id", pa.int64()), pa.field("chunk", pa.int32()), pa.field("text_hash", pa.string())]
_PACKED = pa.list_(pa.binary(1))  # of any length

_TOKENS = [
    pa.field("input_ids", _PACKED),  # [T] the tokenizer's own tokens, BOS included where it uses one
    pa.field("ends", _PACKED),  # [T] bytes of the text consumed after each token
]
_DISTRIBUTIONS = [
    pa.field("ids", _PACKED),  # [sum(counts)] the stored entries of every position, most probable first
    pa.field("logprobs", _PACKED),  # [T] a position's log-probabilities, nats, of the full softmax
    pa.field("counts", _PACKED),  # [T] entries of each position
    pa.field("tail", _PACKED),  # [T] probability outside the entries
]

CHUNKS = pa.schema([*_KEY, pa.field("domain", pa.string()), pa.field("text", pa.string())])
"""The corpus, cut: the chunks of a document, in order, concatenate to it."""

LOGITS = pa.schema([*_KEY, *_TOKENS, *_DISTRIBUTIONS, pa.field("missed_nll", _PACKED)])
"""A source's next-token distributions, and the NLL (nats) of the next tokens that are not among their entries."""

TOKENS = pa.schema(
    [
        *_KEY,
        pa.field("domain", pa.string()),
        *_TOKENS,
        pa.field("context", _PACKED),  # [C] of a chat only: the tokens before those in input_ids
    ]
)
"""The target's tokens."""

ALIGNED = pa.schema(
    [
        *_KEY,
        *_DISTRIBUTIONS,  # over target ids at the target's positions; no entry and tail 1 where not aligned
        pa.field("status", pa.list_(pa.uint8())),  # [L] how the position was aligned (align.positions.Status)
        pa.field("nll", pa.float64()),  # nats, the source's own NLL of the chunk
        pa.field("nll_bytes", pa.int32()),  # bytes that this NLL covers
    ]
)

_OPTIONAL = ("context",)

GENERATED = pa.schema([*_KEY, pa.field("domain", pa.string()), pa.field("text", pa.string())])
"""What a source wrote; the key's first two are those of the chunk that it went on from."""

SCHEMAS = {"chunks": CHUNKS, "logits": LOGITS, "tokens": TOKENS, "aligned": ALIGNED, "generated": GENERATED}

DICTIONARY_KEY = b"fusionx_ids"
"""Footer key of a part's own dictionary of ids (`contract.shards.codec`)."""


def widths(schema: pa.Schema) -> dict[str, int]:
    """Bytes per value of every packed column."""
    return {field.name: field.type.value_type.byte_width for field in schema if is_packed(field.type)}


def schema_of(kind: str, widths: dict[str, int]) -> pa.Schema:
    """The schema of a kind with packed columns of these widths; optional columns are in it where they have one."""
    return pa.schema(
        [
            field.with_type(pa.list_(pa.binary(widths.get(field.name, 1)))) if is_packed(field.type) else field
            for field in SCHEMAS[kind]
            if field.name not in _OPTIONAL or field.name in widths
        ]
    )


def is_packed(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_fixed_size_binary(kind.value_type)


def text_hash(text: str) -> str:
    """Identity of a chunk's text: 128 bits of BLAKE2b over its UTF-8 bytes, in hex."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
