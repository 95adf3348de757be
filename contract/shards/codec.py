"""How tokens and top-k distributions look on disk: the one home of their encoding, exact for every fp16 value.

Ids are replaced by their places in the part's own dictionary, most frequent first. Log-probabilities are differences
of fp16 bit patterns along the rank, which fall and are therefore small; one value per position holds all ranks, so
that Parquet's byte-stream split gives every rank a stream of its own. Of the tail only the difference to what the
rounded entries leave is stored, of the next tokens' NLL only what is not among the entries. `contract.shards.parts`
chooses Parquet's encodings and compresses.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fusionx.contract.shards.parts import Ragged
from fusionx.contract.shards.schema import DICTIONARY_KEY

_NOTHING = np.uint16(0xFC00)
"""The fp16 bits of -inf."""


@dataclass(frozen=True)
class Distributions:
    """N positions' next-token distributions, best first; E entries in all.

    ids: int32 [E]. logprobs: float16 [E], nats, of the full softmax, descending within a position. counts: uint16 [N],
    entries of each position. tail: float16 [N], probability outside the entries, taken before their rounding.
    """

    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float16]
    counts: npt.NDArray[np.uint16]
    tail: npt.NDArray[np.float16]

    @classmethod
    def from_top_k(
        cls,
        ids: npt.NDArray[np.integer],
        logprobs: npt.NDArray[np.floating],
        tail: npt.NDArray[np.floating],
        mass: float | None = None,
    ) -> Distributions:
        """What is stored of top-k statistics.

        Args:
            ids: [N, k]. logprobs: float32 [N, k], nats, descending. tail: float32 [N], probability outside the k.
            mass: keep the fewest entries of a position that reach this probability, at least one; None keeps all k.
        """
        n, k = ids.shape
        counts = np.full(n, k)
        if mass is not None:
            probs = np.exp(logprobs, dtype=np.float64)
            counts = np.minimum((np.cumsum(probs, axis=1) < mass).sum(axis=1) + 1, k)
            tail = tail + (probs * (np.arange(k) >= counts[:, None])).sum(axis=1)
        return cls.from_padded(ids, logprobs, counts, tail)

    @classmethod
    def from_padded(
        cls,
        ids: npt.NDArray[np.integer],
        logprobs: npt.NDArray[np.floating],
        counts: npt.NDArray[np.integer],
        tail: npt.NDArray[np.floating],
    ) -> Distributions:
        """The first `counts` [N] entries of every row of ids and logprobs [N, k]."""
        k = ids.shape[1]
        if (counts != k).any():
            kept = np.arange(k) < counts[:, None]
            ids, logprobs = ids[kept], logprobs[kept]
        with np.errstate(over="ignore"):  # below -65504 is -inf
            half = logprobs.reshape(-1).astype(np.float16)
        return cls(ids.reshape(-1).astype(np.int32), half, counts.astype(np.uint16), tail.astype(np.float16))

    @classmethod
    def concatenate(cls, pieces: Sequence[Distributions]) -> Distributions:
        if not pieces:
            return cls(np.zeros(0, np.int32), np.zeros(0, np.float16), np.zeros(0, np.uint16), np.zeros(0, np.float16))
        return cls(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in cls.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, positions: slice) -> Distributions:
        """Neighbouring positions, without a copy."""
        start, stop, _ = positions.indices(len(self))
        entries = slice(self.starts[start], self.starts[stop])
        return Distributions(self.ids[entries], self.logprobs[entries], self.counts[positions], self.tail[positions])

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """[N + 1], where each position's entries begin."""
        return np.append(0, np.cumsum(self.counts, dtype=np.int64))

    @property
    def k(self) -> int:
        """Entries of the position that has most."""
        return int(self.counts.max(initial=0))

    def padded(self, k: int | None = None) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
        """ids int32 [N, k] filled up with -1 and logprobs float16 [N, k] filled up with -inf; k at least `self.k`.

        Where every position has k entries these are views.
        """
        k = self.k if k is None else k
        if len(self.ids) == len(self) * k:
            return self.ids.reshape(-1, k), self.logprobs.reshape(-1, k)
        kept = np.arange(k) < self.counts[:, None]
        ids = np.full(kept.shape, -1, np.int32)
        logprobs = np.full(kept.shape, -np.inf, np.float16)
        ids[kept], logprobs[kept] = self.ids, self.logprobs
        return ids, logprobs

    def rounded(self, mantissa_bits: int) -> Distributions:
        """The lossy form: log-probabilities rounded to `mantissa_bits` (0 to 10), ties to even; the order is kept."""
        drop = 10 - mantissa_bits
        if drop == 0:
            return self
        bits = self.logprobs.view(np.uint16)
        magnitude = (bits & 0x7FFF).astype(np.uint32)
        nearest = (magnitude + (1 << (drop - 1)) - 1 + ((magnitude >> drop) & 1)) >> drop << drop
        largest = 0x7C00 - (1 << drop)  # what is finite stays finite, and -inf and NaN as they are
        magnitude = np.where(magnitude < 0x7C00, np.minimum(nearest, largest), magnitude)
        logprobs = ((bits & 0x8000) | magnitude.astype(np.uint16)).view(np.float16)
        return Distributions(self.ids, logprobs, self.counts, self.tail)


def probabilities(
    logprobs: npt.NDArray[np.float16], tail: npt.NDArray[np.float16], dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[np.floating]:
    """Probabilities [..., k] of padded log-probabilities [..., k], scaled so that they and `tail` [...] sum to 1.

    The scaling undoes what rounding the entries did to their sum. A position without entries has only zeros.
    """
    probs = np.exp(logprobs.astype(dtype))
    stored = probs.sum(axis=-1)
    scale = np.divide(1 - tail.astype(dtype), stored, out=np.zeros_like(stored), where=stored > 0)
    return probs * scale[..., None]


def divergence(exact: Distributions, stored: Distributions) -> npt.NDArray[np.float64]:
    """KL(exact || stored) of every position, nats, float64 [N]; both have the same ids, and the tail is one symbol."""
    p, q = (probabilities(one.padded()[1], one.tail, np.float64) for one in (exact, stored))
    terms = np.where((p > 0) & (q > 0), p * np.log(np.where(p > 0, p, 1) / np.where(q > 0, q, 1)), 0.0)
    return terms.sum(axis=1)


def add_tokens(table: pa.Table, input_ids: Sequence[np.ndarray], ends: Sequence[np.ndarray]) -> pa.Table:
    """Appends `input_ids` and `ends` (int32, one array per row, non-negative, not falling)."""
    offsets = _offsets([len(row) for row in input_ids])
    flat_ids, flat_ends = (_flat(rows).astype(np.uint32) for rows in (input_ids, ends))
    steps = np.diff(flat_ends, prepend=np.uint32(0))
    starts = offsets[:-1][offsets[:-1] < offsets[1:]]
    steps[starts] = flat_ends[starts]
    return _append(table, input_ids=_column(_packed(flat_ids), offsets), ends=_column(_packed(steps), offsets))


def add_context(table: pa.Table, context: Sequence[np.ndarray]) -> pa.Table:
    """Appends `context` (ids, int32, one array per row)."""
    packed = _packed(_flat(context).astype(np.uint32))
    return _append(table, context=_column(packed, _offsets([len(row) for row in context])))


def read_context(table: pa.Table) -> Ragged | None:
    """`context`, int32, of a table of kind `tokens`; None where it has none."""
    if "context" not in table.column_names:
        return None
    context = Ragged.from_column(table.column("context"))
    return Ragged(_unpacked(context.values).astype(np.int32), context.offsets)


def read_tokens(table: pa.Table) -> tuple[Ragged, Ragged]:
    """`input_ids` and `ends`, int32, of a table of kind `logits` or `tokens`."""
    input_ids, steps = (Ragged.from_column(table.column(name)) for name in ("input_ids", "ends"))
    ends = np.cumsum(_unpacked(steps.values), dtype=np.uint32)
    before = np.append(np.uint32(0), ends)[steps.offsets[:-1]]
    ends -= np.repeat(before, steps.lengths())
    return (
        Ragged(_unpacked(input_ids.values).astype(np.int32), input_ids.offsets),
        Ragged(ends.astype(np.int32), steps.offsets),
    )


def add_distributions(table: pa.Table, distributions: Distributions, lengths: Sequence[int] | np.ndarray) -> pa.Table:
    """Appends `ids`, `logprobs`, `counts` and `tail`; row i takes the next `lengths[i]` positions.

    The dictionary of ids becomes part of the table's metadata. Rows may be selected and reordered later, not joined
    with another part's.
    """
    offsets = _offsets(lengths)
    entry_offsets = distributions.starts[offsets]
    dictionary = _dictionary(distributions.ids)
    code = np.empty(dictionary.max(initial=-1) + 1, np.uint32)
    code[dictionary] = np.arange(len(dictionary), dtype=np.uint32)

    logprobs = distributions.padded(max(1, distributions.k))[1].view(np.uint16)
    steps = logprobs.copy()
    steps[:, 1:] -= logprobs[:, :-1]
    steps[np.arange(steps.shape[1]) >= distributions.counts[:, None]] = 0
    residual = (distributions.tail.view(np.uint16) - _left_over(logprobs)).view(np.int16)
    table = _append(
        table,
        ids=_column(_packed(code[distributions.ids]), entry_offsets),
        logprobs=_column(steps.view(np.uint8), offsets),
        counts=_column(_packed(distributions.counts), offsets),
        # Zigzag: a small difference of either sign becomes a small number.
        tail=_column(((residual << 1) ^ (residual >> 15)).view(np.uint8).reshape(-1, 2), offsets),
    )
    return table.replace_schema_metadata({**(table.schema.metadata or {}), DICTIONARY_KEY: _encoded(dictionary)})


def read_distributions(table: pa.Table) -> Distributions:
    """All positions of a table of kind `logits` or `aligned`, row after row."""
    steps, zigzag = (Ragged.from_column(table.column(name)).values.view(np.uint16) for name in ("logprobs", "tail"))
    ids, counts = _read_ids(table)
    logprobs = np.cumsum(steps, axis=1, dtype=np.uint16)
    kept: npt.NDArray[np.bool_] | tuple[()] = ()  # everything
    if len(ids) != logprobs.size:
        kept = np.arange(logprobs.shape[1]) < counts[:, None]
        logprobs[~kept] = _NOTHING
    tail = _left_over(logprobs) + ((zigzag >> 1) ^ -(zigzag & 1))[:, 0]
    return Distributions(ids, logprobs[kept].reshape(-1).view(np.float16), counts, tail.view(np.float16))


def _read_ids(table: pa.Table) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint16]]:
    codes, counts = (_unpacked(Ragged.from_column(table.column(name)).values) for name in ("ids", "counts"))
    return _decoded(table.schema.metadata[DICTIONARY_KEY])[codes], counts.astype(np.uint16)


def add_token_nll(table: pa.Table, token_nll: npt.NDArray[np.floating]) -> pa.Table:
    """Appends `missed_nll` to a table that has tokens and distributions.

    Args:
        token_nll: float32 [N], nats, entry l is the NLL of token l+1; the last one of a row has no meaning. A next
            token among the stored entries is left out: its log-probability is there.
    """
    input_ids, _ = read_tokens(table)
    missed, (hit, _) = _has_next(input_ids), _hits(input_ids, *_read_ids(table))
    missed[hit] = False
    offsets = np.append(0, np.cumsum(missed))[input_ids.offsets]
    values = token_nll[missed].astype(np.float16).view(np.uint8).reshape(-1, 2)
    return _append(table, missed_nll=_column(values, offsets))


def read_token_nll(table: pa.Table, distributions: Distributions) -> npt.NDArray[np.float32]:
    """NLL of the next token at every position of a table of kind `logits`, nats, 0 at the last position of a row.

    Args:
        distributions: of the same table (`read_distributions`).
    """
    input_ids, _ = read_tokens(table)
    missed, (hit, entry) = _has_next(input_ids), _hits(input_ids, distributions.ids, distributions.counts)
    missed[hit] = False
    nll = np.zeros(len(missed), np.float32)
    nll[hit] = -distributions.logprobs[entry]
    nll[missed] = Ragged.from_column(table.column("missed_nll")).values.view(np.float16)[:, 0]
    return nll


def _has_next(input_ids: Ragged) -> npt.NDArray[np.bool_]:
    """Which of all positions have a next token in their row."""
    has_next = np.ones(len(input_ids.values), bool)
    has_next[input_ids.offsets[1:][input_ids.lengths() > 0] - 1] = False
    return has_next


def _hits(
    input_ids: Ragged, ids: npt.NDArray[np.int32], counts: npt.NDArray[np.uint16]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions whose next token is stored, and the entry that holds it."""
    labels = np.where(_has_next(input_ids), np.roll(input_ids.values, -1), -1)
    entry = np.flatnonzero(ids == np.repeat(labels, counts))
    return np.searchsorted(np.cumsum(counts, dtype=np.int64), entry, side="right"), entry


@cache
def _probability_table() -> npt.NDArray[np.int32]:
    """e^x in units of 2^-30 for every fp16 bit pattern x (at most 1, and 0 for NaN).

    Made of IEEE additions and multiplications only: unlike `exp` they are the same on every machine, and decoding
    must find the very number that encoding found.
    """
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    x = np.clip(np.nan_to_num(x, nan=-32.0), -32.0, 0.0) / 64  # e^x = (e^(x/64))^64
    result = np.ones_like(x)
    for order in range(16, 0, -1):
        result = 1 + x * result / order
    for _ in range(6):
        result = result * result
    return np.floor(result * (1 << 30) + 0.5).astype(np.int32)


def _left_over(logprobs: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """fp16 bits [N] of the probability that padded fp16 log-probabilities [N, k] leave to 1, at least 0."""
    stored = np.einsum("ij->i", _probability_table()[logprobs])  # integers: exact in any order, overflow included
    return (np.maximum((1 << 30) - stored, 0) / (1 << 30)).astype(np.float16).view(np.uint16)


def _dictionary(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The ids that occur, in classes of falling frequency (powers of two), ascending within a class.

    Classes serve as well as the exact order, and the dictionary itself compresses much better.
    """
    frequency = np.bincount(ids)
    used = np.flatnonzero(frequency)
    classes = np.frexp(frequency[used].astype(np.float64))[1]
    return used[np.argsort(-classes, kind="stable")].astype(np.int32)


def _encoded(dictionary: npt.NDArray[np.int32]) -> bytes:
    """As text, because other readers of Parquet take footers for UTF-8."""
    steps = np.diff(dictionary, prepend=np.int32(0)).view(np.uint8).reshape(-1, 4)
    return base64.b85encode(zlib.compress(steps.T.tobytes(), 9))


def _decoded(encoded: bytes) -> npt.NDArray[np.int32]:
    steps = np.frombuffer(zlib.decompress(base64.b85decode(encoded)), np.uint8).reshape(4, -1)
    return np.cumsum(np.ascontiguousarray(steps.T).view(np.int32)[:, 0], dtype=np.int32)


def _packed(values: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.uint8]:
    """uint8 [n, width]: the fewest little-endian bytes that hold every value."""
    width = max(1, (int(values.max(initial=0)).bit_length() + 7) // 8)
    return np.ascontiguousarray(values.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width])


def _unpacked(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.unsignedinteger]:
    if packed.shape[1] in (1, 2):
        return packed.view(f"<u{packed.shape[1]}")[:, 0]
    wide = np.zeros((len(packed), 4), np.uint8)
    wide[:, : packed.shape[1]] = packed
    return wide.view("<u4")[:, 0]


def _column(values: npt.NDArray[np.uint8], offsets: np.ndarray) -> pa.ListArray:
    """Values uint8 [n, width] as lists; row i holds those from offsets[i] to offsets[i + 1]."""
    packed = pa.Array.from_buffers(pa.binary(values.shape[1]), len(values), [None, pa.py_buffer(values)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), packed)


def _append(table: pa.Table, **columns: pa.Array) -> pa.Table:
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _offsets(lengths: Sequence[int] | np.ndarray) -> npt.NDArray[np.int64]:
    return np.append(0, np.cumsum(lengths, dtype=np.int64))


def _flat(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(rows) if len(rows) else np.zeros(0, np.int32)
