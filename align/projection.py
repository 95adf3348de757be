"""Carries top-k distributions over source ids into the target's vocabulary and positions."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from align.compiled import compiled
from align.vocab_map import VocabMap
from contract.codec import Distributions


def project(
    source: Distributions, source_index: npt.NDArray[np.integer], vocab_map: VocabMap, k_out: int
) -> tuple[Distributions, npt.NDArray[np.float32]]:
    """Distributions over target ids at target positions (paper section 3.1, distribution-wise alignment).

    A source token's probability goes to the target token that it maps to (with ties "split" in equal shares to
    several); probabilities that meet on one id are summed; the `k_out` largest are kept. What maps nowhere, what is
    cut off, and what the source's own entries left out is the tail: nothing is renormalised here. A source's entries
    are taken to sum to 1 - its tail, which undoes their rounding, and kept + tail = 1 holds for what comes out.

    Args:
        source: S distributions; ids outside the map (of a head larger than the tokenizer) are dropped.
        source_index: int [L], the source's position for every target position, -1 where not aligned.

    Returns:
        L distributions, descending by probability, equal ones by ascending id, without entries of probability 0; a
        position that is not aligned has no entry and tail 1. And the entries' probabilities before their rounding,
        float32 [E].
    """
    shares = vocab_map.shares
    widest = int(np.diff(shares.offsets).max(initial=0)) * source.k
    room = len(source_index) * min(k_out, widest)
    ids, probs = np.empty(room, np.int32), np.empty(room, np.float32)
    counts, tail = np.empty(len(source_index), np.uint16), np.empty(len(source_index), np.float32)
    size = _project(
        np.append(0, np.cumsum(source.counts, dtype=np.int64)),
        source.ids,
        source.logprobs.view(np.uint16),
        source.tail.astype(np.float64),
        _probability_of_bits(),
        source_index.astype(np.int64),
        (shares.offsets, shares.target_ids, shares.weights),
        k_out,
        widest,
        (ids, probs, counts, tail),
    )
    ids, probs = ids[:size], probs[:size]
    return Distributions(ids, np.log(probs).astype(np.float16), counts, tail.astype(np.float16)), probs


@cache
def _probability_of_bits() -> npt.NDArray[np.float64]:
    """e^x for every fp16 bit pattern x, float64 [65536]; 0 for what is no log-probability."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    return np.where(x <= 0, np.exp(np.minimum(x, 0)), 0.0)


@compiled
def _project(offsets, ids, logprobs, tails, probability, source_index, shares, k_out, widest, out):  # type: ignore[no-untyped-def]
    """Fills `out`; returns the number of entries. `widest`: the most target ids that one position can meet."""
    share_offsets, share_ids, share_weights = shares
    out_ids, out_probs, out_counts, out_tails = out
    found_ids, found = np.empty(widest, np.int32), np.empty(widest, np.float64)
    found_probs = np.empty(widest, np.float32)
    # A hash table from target id to its place in `found`; a slot is taken if it is stamped with this row.
    slots = 16
    while slots < 2 * widest:
        slots *= 2
    slot_id, slot_place = np.empty(slots, np.int32), np.empty(slots, np.int32)
    slot_row = np.full(slots, -1, np.int64)
    size = 0
    for row in range(len(source_index)):
        position = source_index[row]
        if position < 0:
            out_counts[row], out_tails[row] = 0, 1.0
            continue
        start, stop = offsets[position], offsets[position + 1]
        stored = 0.0
        for entry in range(start, stop):
            stored += probability[logprobs[entry]]
        scale = (1.0 - tails[position]) / stored if stored > 0 else 0.0

        met = 0
        for entry in range(start, stop):
            source_id = ids[entry]
            if source_id < 0 or source_id >= len(share_offsets) - 1:
                continue
            mass = scale * probability[logprobs[entry]]
            for share in range(share_offsets[source_id], share_offsets[source_id + 1]):
                target_id = share_ids[share]
                slot = (target_id * 40503) & (slots - 1)
                while slot_row[slot] == row and slot_id[slot] != target_id:
                    slot = (slot + 1) & (slots - 1)
                if slot_row[slot] != row:
                    slot_row[slot], slot_id[slot], slot_place[slot] = row, target_id, met
                    found_ids[met], found[met] = target_id, 0.0
                    met += 1
                found[slot_place[slot]] += mass * share_weights[share]

        # The source's entries come in descending order, and few of them meet: almost sorted.
        for place in range(met):
            target_id, prob = found_ids[place], np.float32(found[place])
            at = place
            while at > 0 and (
                found_probs[at - 1] < prob or (found_probs[at - 1] == prob and found_ids[at - 1] > target_id)
            ):
                found_probs[at], found_ids[at] = found_probs[at - 1], found_ids[at - 1]
                at -= 1
            found_probs[at], found_ids[at] = prob, target_id

        kept, total = 0, 0.0
        while kept < min(met, k_out) and found_probs[kept] > 0:
            out_ids[size], out_probs[size] = found_ids[kept], found_probs[kept]
            total += found_probs[kept]
            size += 1
            kept += 1
        out_counts[row], out_tails[row] = kept, max(1.0 - total, 0.0)
    return size
