"""Carries top-k distributions over source ids into the target's vocabulary and positions."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from align.compiled import compiled
from align.vocab_map import VocabMap
from contract.codec import Distributions

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
    moves = moves or Moves.none(len(source_index))
    target_size = 1 + max(int(rows.max(initial=-1)), int(moves.taker.max(initial=-1)), int(moves.giver.max(initial=-1)))
    widest = rows.shape[1] * source.k + 1
    width = min(k_out, widest)
    offsets = np.append(0, np.cumsum(source.counts, dtype=np.int64))
    bits, tails = source.logprobs.view(np.uint16), source.tail.astype(np.float64)
    ids, probs, logprobs = (np.empty(len(source_index) * width, kind) for kind in (np.int32, np.float32, np.float16))
    counts, tail = np.empty(len(source_index), np.uint16), np.empty(len(source_index), np.float32)
    logs = np.empty(min(_BLOCK_POSITIONS, len(source_index)) * width, np.float32)
    size = 0
    for start in range(0, len(source_index), _BLOCK_POSITIONS):
        block = slice(start, start + _BLOCK_POSITIONS)
        out = (ids[size:], probs[size:], counts[block], tail[block])
        made = _project(
            (offsets, source.ids, bits, tails),
            source_index[block].astype(np.int64),
            rows,
            tuple(column[block] for column in moves),
            _probability_of_bits(),
            (target_size, widest, k_out),
            out,
        )
        logprobs[size : size + made] = np.log(probs[size : size + made], out=logs[:made])
        size += made
    return Distributions(ids[:size], logprobs[:size], counts, tail.astype(np.float16)), probs[:size]


@cache
def _probability_of_bits() -> npt.NDArray[np.float32]:
    """e^x for every fp16 bit pattern x, float32 [65536]; 0 for what is no log-probability."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    return np.where(x <= 0, np.exp(np.minimum(x, 0)), 0.0).astype(np.float32)


@compiled
def _project(source, source_index, rows, moves, probability, sizes, out):  # type: ignore[no-untyped-def]
    """Fills `out`; returns the number of entries. `widest`: the most target ids that one position can meet."""
    offsets, ids, logprobs, tails = source
    move_mass, move_giver, move_taker = moves
    target_size, widest, k_out = sizes
    out_ids, out_probs, out_counts, out_tails = out
    found_ids, found_probs = np.empty(widest, np.int32), np.empty(widest, np.float32)
    found, masses = np.empty(widest, np.float64), np.empty(widest, np.float32)
    # Of every target id its place in `found`, plus `widest` for every position before: what is less is outdated.
    place_of = np.full(target_size, -1, np.int32)
    size = 0
    for at in range(len(source_index)):
        position = source_index[at]
        if position < 0:
            out_counts[at], out_tails[at] = 0, 1.0
            continue
        start, stop = offsets[position], offsets[position + 1]
        stored = 0.0
        for entry in range(start, stop):
            masses[entry - start] = probability[logprobs[entry]]
            stored += masses[entry - start]
        scale = (1.0 - tails[position]) / stored if stored > 0 else 0.0

        met, first = 0, at * widest
        for entry in range(start, stop):
            source_id = ids[entry]
            if source_id < 0 or source_id >= len(rows):
                continue
            shares = 0
            while shares < rows.shape[1] and rows[source_id, shares] >= 0:
                shares += 1
            mass = scale * masses[entry - start]
            if shares > 1:
                mass /= shares
            for share in range(shares):
                target_id = rows[source_id, share]
                if place_of[target_id] >= first:
                    found[place_of[target_id] - first] += mass
                else:
                    place_of[target_id] = first + met
                    found_ids[met], found[met] = target_id, mass
                    met += 1

        if move_mass[at] > 0:
            giver, taker, mass = move_giver[at], move_taker[at], float(move_mass[at])
            if giver >= 0 and place_of[giver] >= first:
                found[place_of[giver] - first] = max(found[place_of[giver] - first] - mass, 0.0)
            if place_of[taker] >= first:
                found[place_of[taker] - first] += mass
            else:
                found_ids[met], found[met] = taker, mass
                met += 1

        # The source's entries come in descending order, and few of them meet: almost sorted.
        for place in range(met):
            target_id, prob = found_ids[place], np.float32(found[place])
            to = place
            while to > 0 and (
                found_probs[to - 1] < prob or (found_probs[to - 1] == prob and found_ids[to - 1] > target_id)
            ):
                found_probs[to], found_ids[to] = found_probs[to - 1], found_ids[to - 1]
                to -= 1
            found_probs[to], found_ids[to] = prob, target_id

        kept, total = 0, 0.0
        while kept < min(met, k_out) and found_probs[kept] > 0:
            out_ids[size], out_probs[size] = found_ids[kept], found_probs[kept]
            total += found_probs[kept]
            size += 1
            kept += 1
        out_counts[at], out_tails[at] = kept, max(1.0 - total, 0.0)
    return size
