"""Carries top-k distributions over source ids into the target's vocabulary and positions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusionx.align.half import half_logs, probability_of_bits
from fusionx.align.vocabulary.vocab_map import VocabMap
from fusionx.contract.jit import compiled
from fusionx.contract.shards.codec import Distributions


def project(
    source: Distributions,
    source_index: npt.NDArray[np.integer],
    vocab_map: VocabMap,
    k_out: int,
) -> tuple[Distributions, npt.NDArray[np.float32]]:
    """Distributions over target ids at target positions (paper section 3.1, distribution-wise alignment).

    A source token's probability goes to the target token that it maps to; probabilities that meet on one id are summed;
    the `k_out` largest are kept. What maps nowhere, what is cut off, and what the source's own entries left out is the
    tail: nothing is renormalised here. A source's entries are taken to sum to 1 - its tail, which undoes their
    rounding; kept + tail = 1 holds for what comes out.

    Args:
        source: S distributions; ids outside the map (of a head larger than the tokenizer) are dropped.
        source_index: int [L], the source's position for every target position, -1 where not aligned.

    Returns:
        L distributions, descending by probability, equal ones by ascending id, without entries of probability 0; a
        position that is not aligned has no entry and tail 1. And the entries' probabilities before their rounding,
        float32 [E].
    """
    width = min(k_out, max(source.k, 1))
    ids, probs = np.empty(len(source_index) * width, np.int32), np.empty(len(source_index) * width, np.float32)
    counts, tail = np.empty(len(source_index), np.uint16), np.empty(len(source_index), np.float32)
    size = _project(
        (source.starts, source.ids, source.logprobs.view(np.uint16), source.tail.astype(np.float64)),
        source_index.astype(np.int64),
        vocab_map.target_ids,
        probability_of_bits(),
        (1 + int(vocab_map.target_ids.max(initial=-1)), max(source.k, 1), k_out),
        (ids, probs, counts, tail),
    )
    return Distributions(ids[:size], half_logs(probs[:size]), counts, tail.astype(np.float16)), probs[:size]


@compiled
def _project(source, source_index, goals, probability, sizes, out):  # type: ignore[no-untyped-def]
    """Fills `out`; returns the number of entries.

    `goals`: the target id of every source id. `sizes`: the number of target ids, the most that one position can meet,
    and `k_out`.
    """
    offsets, ids, logprobs, tails = source
    target_size, widest, k_out = sizes
    out_ids, out_probs, out_counts, out_tails = out
    found_ids, found = np.empty(widest, np.int32), np.empty(widest, np.float64)
    rounded, ranking = np.empty(widest, np.float32), np.empty(widest, np.uint64)
    rounded_bits = rounded.view(np.uint32)
    # Of every target id its place in `found`, plus `widest` for every position before: what is less is outdated.
    place_of = np.full(target_size, -1, np.int64)
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
            target_id = goals[source_id] if 0 <= source_id < len(goals) else -1
            if target_id < 0:
                continue
            if place_of[target_id] >= first:
                found[place_of[target_id] - first] += mass
            else:
                place_of[target_id] = first + met
                found_ids[met], found[met] = target_id, mass
                met += 1
        scale = (1.0 - tails[position]) / stored if stored > 0 else 0.0
        for place in range(met):
            found[place] *= scale

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
