"""Arrow schemas of every stage's parts. One row is one chunk; (doc_id, chunk) is its key everywhere.

Per-token columns are flat lists: `top_ids` of a chunk with T tokens holds T*k values, rank-major within a position,
so that a whole part turns into numpy arrays without a loop (`contract.shard.Ragged`). k stands in the part's footer.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa

SCHEMA_VERSION = 1

_KEY = [pa.field("doc_id", pa.int64()), pa.field("chunk", pa.int32()), pa.field("text_hash", pa.string())]

CHUNKS = pa.schema([*_KEY, pa.field("domain", pa.string()), pa.field("text", pa.string())])
"""The corpus, cut: the chunks of a document, in order, concatenate to it."""

LOGITS = pa.schema(
    [
        *_KEY,
        pa.field("input_ids", pa.list_(pa.int32())),  # [T] the source's own tokens, BOS included where it uses one
        pa.field("ends", pa.list_(pa.int32())),  # [T] bytes of the text consumed after each token
        pa.field("top_ids", pa.list_(pa.int32())),  # [T*k] most probable next tokens, descending
        pa.field("top_logprobs", pa.list_(pa.float16())),  # [T*k] nats, of the full softmax computed in fp32
        pa.field("token_nll", pa.list_(pa.float32())),  # [T-1] nats, entry l is the NLL of token l+1
    ]
)

TOKENS = pa.schema(
    [
        *_KEY,
        pa.field("domain", pa.string()),
        pa.field("input_ids", pa.list_(pa.int32())),  # [L] the target's tokens
        pa.field("ends", pa.list_(pa.int32())),  # [L] bytes of the text consumed after each token
    ]
)

ALIGNED = pa.schema(
    [
        *_KEY,
        pa.field("ids", pa.list_(pa.int32())),  # [L*k] target ids by descending probability; -1 fills up
        pa.field("probs", pa.list_(pa.float16())),  # [L*k] their probabilities; what is missing to 1 is the tail
        pa.field("status", pa.list_(pa.uint8())),  # [L] how the position was aligned (align.positions.Status)
        pa.field("nll", pa.float64()),  # nats, the source's own NLL of the chunk (sum of its token_nll)
        pa.field("nll_bytes", pa.int32()),  # bytes that this NLL covers
    ]
)

SCHEMAS = {"chunks": CHUNKS, "logits": LOGITS, "tokens": TOKENS, "aligned": ALIGNED}


def text_hash(text: str) -> str:
    """Identity of a chunk's text: 128 bits of BLAKE2b over its UTF-8 bytes, in hex."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
