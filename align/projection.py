"""Carries top-k distributions over source ids into the target's vocabulary and positions."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fusionx.align.jit import compiled
from fusionx.align.vocabulary.vocab_map import VocabMap
from fusionx.contract.shards.codec import Distributions

_BLOCK_POSITIONS = 1 << 12
"""Positions projected at once: their entries stay in the processor's cache until their logarithms are taken."""


class Moves(NamedTuple):
    """Probability that moves from one target id to another at every target position, after the projection.

    mass: float32 [L], 0 where nothing moves. giver, taker: int32 [L], target ids; what the giver (-1: nobody) does not
    have among its entries comes from the tail.
    """

    mass: npt.NDArray[np.float32]
    giver: npt.NDArray[np.int32]
    taker: npt.NDArray[np.int32]

    @classmethod
    def none(cls, size: int) -> Moves:
        return cls(np.zeros(size, np.float32), np.full(size, -1, np.int32), np.full(size, -1, np.int32))


def project(
    source: Distributions,
    source_index: npt.NDArray[np.integer],
    vocab_map: VocabMap,
    k_out: int,
    moves: Moves | None = None,
) -> tuple[Distributions, npt.NDArray[np.float32]]:
    """Distributions over target ids at target positions (paper section 3.1, distribution-wise alignment).

    A source token's probability goes to the target token that it maps to (with ties "split" in equal shares to
    several); probabilities that meet on one id are summed; the `k_out` largest are kept. What maps nowhere, what is
    cut off, and what the source's own entries left out is the tail: nothing is renormalised here. A source's entries
    are taken to sum to 1 - its tail, which undoes their rounding, and kept + tail = 1 holds for what comes out.

    Args:
        source: S distributions; ids outside the map (of a head larger than the tokenizer) are dropped.
        source_index: int [L], the source's position for every target position, -1 where not aligned.
        moves: what moves to the next token by the chain rule (`align.chain_rule`), if anything.

    Returns:
        L distributions, descending by probability, equal ones by ascending id, without entries of probability 0; a
        position that is not aligned has no entry and tail 1. And the entries' probabilities before their rounding,
        float32 [E].
    """
    rows = np.ascontiguousarray(vocab_map.rows)
    goals = (rows, (rows >= 0).sum(axis=1))
    moves = moves or Moves.none(len(source_index))
    target_size = 1 + max(int(rows.max(initial=-1)), int(moves.taker.max(initial=-1)), int(moves.giver.max(initial=-1)))
    widest = rows.shape[1] * source.k + 1
    width = min(k_out, widest)
    bits, tails = source.logprobs.view(np.uint16), source.tail.astype(np.float64)
    ids, probs, logprobs = (np.empty(len(source_index) * width, kind) for kind in (np.int32, np.float32, np.uint16))
    counts, tail = np.empty(len(source_index), np.uint16), np.empty(len(source_index), np.float32)
    logs = np.empty(min(_BLOCK_POSITIONS, len(source_index)) * width, np.float32)
    size = 0
    for start in range(0, len(source_index), _BLOCK_POSITIONS):
        block = slice(start, start + _BLOCK_POSITIONS)
        out = (ids[size:], probs[size:], counts[block], tail[block])
        made = _project(
            (source.starts, source.ids, bits, tails),
            source_index[block].astype(np.int64),
            goals,
            tuple(column[block] for column in moves),
            _probability_of_bits(),
            (target_size, widest, k_out),
            out,
        )
        np.log(probs[size : size + made], out=logs[:made])
        _round_to_half(logs[:made], logprobs[size:])
        size += made
    half = logprobs[:size].view(np.float16)
    return Distributions(ids[:size], half, counts, tail.astype(np.float16)), probs[:size]


@cache
def _probability_of_bits() -> npt.NDArray[np.float32]:
    """e^x for every fp16 bit pattern x, float32 [65536]; 0 for what is no log-probability."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    return np.where(x <= 0, np.exp(np.minimum(x, 0)), 0.0).astype(np.float32)


@compiled
def _project(source, source_index, goals, moves, probability, sizes, out):  # type: ignore[no-untyped-def]
    """Fills `out`; returns the number of entries.

    `goals`: the target ids of every source id, and how many they are. `sizes`: the number of target ids, the most that
    one position can meet, and `k_out`.
    """
    offsets, ids, logprobs, tails = source
    rows, shares = goals
    move_mass, move_giver, move_taker = moves
    target_size, widest, k_out = sizes
    out_ids, out_probs, out_counts, out_tails = out
    found_ids, found = np.empty(widest, np.int32), np.empty(widest, np.float64)
    rounded, ranking = np.empty(widest, np.float32), np.empty(widest, np.uint64)
    rounded_bits = rounded.view(np.uint32)
    # Of every target id its place in `found`, plus `widest` for every position before: what is less is outdated.
    place_of = np.full(target_size, -1, np.int32)
    size = 0
    for at in range(len(source_index)):
        position = source_index[at]
        if position < 0:
            out_counts[at], out_tails[at] = 0, 1.0
            continue
        met, first, stored = 0, at * widest, 0.0
        for entry in range(offsets[position], offsets[position + 1]):
            mass = np.float64(probability[logprobs[entry]])
            stored += mass
            source_id = ids[entry]
            if source_id < 0 or source_id >= len(rows):
                continue
            if shares[source_id] > 1:
                mass /= shares[source_id]
            for share in range(shares[source_id]):
                target_id = rows[source_id, share]
                if place_of[target_id] >= first:
                    found[place_of[target_id] - first] += mass
                else:
                    place_of[target_id] = first + met
                    found_ids[met], found[met] = target_id, mass
                    met += 1
        scale = (1.0 - tails[position]) / stored if stored > 0 else 0.0
        for place in range(met):
            found[place] *= scale

        if move_mass[at] > 0:
            giver, taker, moved = move_giver[at], move_taker[at], float(move_mass[at])
            if giver >= 0 and place_of[giver] >= first:
                found[place_of[giver] - first] = max(found[place_of[giver] - first] - moved, 0.0)
            if place_of[taker] >= first:
                found[place_of[taker] - first] += moved
            else:
                found_ids[met], found[met] = taker, moved
                met += 1

        # One integer ranks by probability, then by falling id: the bits of a float that is not negative grow with it.
        for place in range(met):
            rounded[place] = found[place]
        for place in range(met):
            ranking[place] = (np.uint64(rounded_bits[place]) << np.uint64(32)) | np.uint64(~np.uint32(found_ids[place]))
        # The source's entries come in descending order, and few of them meet: almost sorted.
        for place in range(1, met):
            rank, to = ranking[place], place
            while to > 0 and ranking[to - 1] < rank:
                ranking[to] = ranking[to - 1]
                to -= 1
            ranking[to] = rank

        kept, total = 0, 0.0
        while kept < min(met, k_out) and ranking[kept] >> np.uint64(32) > 0:
            rounded_bits[kept] = ranking[kept] >> np.uint64(32)
            out_ids[size], out_probs[size] = np.int32(~np.uint32(ranking[kept])), rounded[kept]
            total += rounded[kept]
            size += 1
            kept += 1
        out_counts[at], out_tails[at] = kept, max(1.0 - total, 0.0)
    return size


@compiled
def _round_to_half(values, out):  # type: ignore[no-untyped-def]
    """fp16 bits of float32 values below 65504 in size, to nearest, ties to even; numpy converts one value at a time."""
    bits = values.view(np.uint32)
    for at in range(len(values)):
        size = np.int32(bits[at] & np.uint32(0x7FFFFFFF))
        if size >= 0x38800000:  # 2^-14, fp16's smallest normal value: a smaller exponent, ten bits of the fraction
            half = (size + 0xFFF + ((size >> 13) & 1) - (112 << 23)) >> 13
        else:
            half = np.int32(np.rint(np.abs(values[at]) * np.float32(1 << 24)))
        out[at] = np.uint16(half | ((bits[at] >> np.uint32(16)) & np.uint32(0x8000)))
