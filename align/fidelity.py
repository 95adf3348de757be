"""What alignment costs: how well the aligned distributions predict the target's own next tokens.

A source's bits per byte on its own tokens say what it knows; the bits per byte of the target's tokens under the aligned
distribution say what is left of that. The difference, per source, domain and map, is the price of the alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionx.contract.shards.codec import Distributions
from fusionx.contract.shards.manifest import Manifest, build_manifest
from fusionx.contract.shards.next_token import gold_probabilities, next_tokens
from fusionx.contract.shards.parts import Ragged

Fidelity = dict[str, dict[str, float]]
"""Domain -> sums: see `fidelity`."""


def fidelity(
    domains: Sequence[str],
    input_ids: Ragged,
    ends: Ragged,
    aligned: npt.NDArray[np.bool_],
    projected: Distributions,
    probs: npt.NDArray[np.float32],
    vocab_size: int,
    own_nll: npt.NDArray[np.floating],
    own_bytes: npt.NDArray[np.integer],
) -> Fidelity:
    """Sums per domain, which add up over parts.

    Counted are the aligned positions that have a next token in their chunk. Where that token is not among a position's
    entries, it gets an equal share of the tail with all others that are not: the tail costs what knowing nothing costs.

    Args:
        domains: of the rows. input_ids, ends: int32, the target's tokens and their end byte offsets.
        aligned: bool [L]. projected: L distributions over target ids, `probs` float32 [E] their unrounded entries.
        own_nll: nats [rows], the source's NLL of each chunk on its own tokens, over `own_bytes` [rows] bytes.

    Returns:
        domain -> gold_positions, gold_bytes (of these next tokens), gold_nll (nats), gold_hits (the most probable
        entry is the next token), own_bytes, own_nll.
    """
    labels, sizes = next_tokens(input_ids, ends)
    counted = aligned & (labels >= 0)
    gold, hit = gold_probabilities(projected, probs, labels, vocab_size)
    columns = {
        "gold_positions": counted,
        "gold_bytes": np.where(counted, sizes, 0),
        "gold_nll": np.where(counted, -np.log(gold), 0.0),
        "gold_hits": counted & hit,
    }
    rows = np.repeat(np.arange(len(input_ids)), input_ids.lengths())
    by_row = {name: np.bincount(rows, column, len(input_ids)) for name, column in columns.items()}
    by_row |= {"own_bytes": own_bytes.astype(np.float64), "own_nll": own_nll.astype(np.float64)}
    which = np.array(domains, dtype=object)
    return {
        domain: {name: float(values[which == domain].sum()) for name, values in by_row.items()}
        for domain in sorted(set(domains))
    }


def summary(by_domain: Fidelity) -> dict[str, float]:
    """Of all domains together: own and aligned bits per byte, what alignment `costs`, and the share of `hits`."""
    total = {name: sum(sums[name] for sums in by_domain.values()) for name in next(iter(by_domain.values()))}
    own = total["own_nll"] / max(total["own_bytes"], 1) / np.log(2)
    gold = total["gold_nll"] / max(total["gold_bytes"], 1) / np.log(2)
    return {
        "own_bits_per_byte": float(own),
        "aligned_bits_per_byte": float(gold),
        "cost": float(gold - own),
        "hits": total["gold_hits"] / max(total["gold_positions"], 1),
    }


def shares(by_domain: dict[str, dict[str, int]]) -> dict[str, float]:
    """Status -> share of the positions of all domains, from counts per domain."""
    names = next(iter(by_domain.values()))
    counts = {name: sum(of_domain[name] for of_domain in by_domain.values()) for name in names}
    total = max(1, sum(counts.values()))
    return {name: count / total for name, count in counts.items()}


def held_out(aligned: Manifest) -> tuple[str, dict[str, Any]]:
    """The split by which alignment is judged, and the statistics of its parts, summed up.

    It is `validation`; another one where `precompute.splits` leaves that out.
    """
    split = "validation" if aligned.parts_of("validation") else aligned.parts[0].split
    judged = build_manifest(aligned.kind, aligned.config, aligned.identity, aligned.parts_of(split))
    return split, judged.stats
