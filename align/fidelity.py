"""What alignment costs: how well the aligned distributions predict the target's own next tokens.

A source's bits per byte on its own tokens say what it knows; the bits per byte of the target's tokens under the aligned
distribution say what is left of that. The difference, per source, domain and method, is the price of the alignment. The
text alone proves little of the mass beside it: the calibration by length compares what tokens of 1, 2, ... bytes are
given with how often they occur.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusionx.contract.shards.codec import Distributions
from fusionx.contract.shards.manifest import Manifest, build_manifest
from fusionx.contract.shards.next_token import next_tokens
from fusionx.contract.shards.parts import Ragged

Fidelity = dict[str, dict[str, float]]
"""Domain -> sums: see `fidelity`."""
Calibration = dict[str, dict[str, float]]
"""Length in bytes -> `given` and `found`: see `calibration`."""

LENGTHS = 10
"""Tokens of so many bytes and more are counted together."""


class Gold(NamedTuple):
    """How the next tokens of L target positions fare.

    judged: bool [L], whether one is. gold, filled: float64 [L], its probability with nothing but the source, and as it
    is stored. hit: bool [L], whether it is the most probable; blind_hit: also without a look at how the text goes on.
    """

    judged: npt.NDArray[np.bool_]
    gold: npt.NDArray[np.float64]
    filled: npt.NDArray[np.float64]
    hit: npt.NDArray[np.bool_]
    blind_hit: npt.NDArray[np.bool_]


def fidelity(
    domains: Sequence[str],
    input_ids: Ragged,
    ends: Ragged,
    gold: Gold,
    source_ends: Ragged,
    token_nll: npt.NDArray[np.floating],
) -> Fidelity:
    """Sums per domain, which add up over parts.

    The source is judged on the same text: on those of its next tokens that begin where the target's first distribution
    stands, or later.

    Args:
        domains: of the rows. input_ids, ends: int32, the target's tokens and their end byte offsets.
        source_ends: int32, of the source's tokens. token_nll: nats, at each of its positions that of the next token.

    Returns:
        domain -> gold_positions, gold_bytes (of these next tokens), gold_nll, filled_nll (nats), gold_hits (the most
        probable entry is the next token), blind_positions, blind_hits, own_bytes, own_nll.
    """
    _, sizes = next_tokens(input_ids, ends)
    columns = {
        "gold_positions": gold.judged,
        "gold_bytes": np.where(gold.judged, sizes, 0),
        "gold_nll": np.where(gold.judged, -np.log(np.where(gold.judged, gold.gold, 1.0)), 0.0),
        "filled_nll": np.where(gold.judged, -np.log(np.where(gold.judged, gold.filled, 1.0)), 0.0),
        "gold_hits": gold.judged & gold.hit,
        "blind_positions": gold.judged,
        "blind_hits": gold.judged & gold.blind_hit,
    }
    rows = np.repeat(np.arange(len(input_ids)), input_ids.lengths())
    by_row = {name: np.bincount(rows, column, len(input_ids)) for name, column in columns.items()}
    by_row |= _own(ends, source_ends, token_nll)
    which = np.array(domains, dtype=object)
    return {
        domain: {name: float(values[which == domain].sum()) for name, values in by_row.items()}
        for domain in sorted(set(domains))
    }


def _own(ends: Ragged, source_ends: Ragged, token_nll: npt.NDArray[np.floating]) -> dict[str, np.ndarray]:
    rows = np.repeat(np.arange(len(source_ends)), source_ends.lengths())
    first = np.append(ends.values, 0)[ends.offsets[:-1]]
    sizes = np.zeros(len(source_ends.values), np.int64)
    sizes[:-1] = np.diff(source_ends.values)
    sizes[source_ends.offsets[1:][source_ends.lengths() > 0] - 1] = 0
    counted = (source_ends.values >= first[rows]) & (ends.lengths() > 0)[rows]
    return {
        "own_bytes": np.bincount(rows, np.where(counted, sizes, 0), len(source_ends)),
        "own_nll": np.bincount(rows, np.where(counted, token_nll, 0.0), len(source_ends)),
    }


def calibration(
    said: Distributions,
    probs: npt.NDArray[np.floating],
    judged: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
) -> Calibration:
    """What the entries of judged positions give to tokens of 1, 2, ... `LENGTHS` bytes (and more), and how often such
    tokens come next: sums, which add up over parts.

    Args:
        said: N positions over E entries, of probabilities `probs` [E]. judged: bool [N]. labels: int64 [N], the next
            tokens. lengths: int32 [V], bytes of every token.
    """
    entries = np.repeat(judged, said.counts)
    known = np.append(lengths, 0)  # a head may be larger than the vocabulary
    kept = np.minimum(known[np.minimum(said.ids[entries], len(lengths))], LENGTHS)
    given = np.bincount(kept, probs[entries], LENGTHS + 1)
    found = np.bincount(np.minimum(lengths[labels[judged]], LENGTHS), minlength=LENGTHS + 1)
    return {str(size): {"given": float(given[size]), "found": float(found[size])} for size in range(1, LENGTHS + 1)}


def ratios(of_lengths: Calibration) -> list[float | None]:
    """Given over found, by length; None where no such token came."""
    rows = [of_lengths[str(size)] for size in range(1, LENGTHS + 1)]
    return [row["given"] / row["found"] if row["found"] else None for row in rows]


def summary(by_domain: Fidelity) -> dict[str, float]:
    """Of all domains together, in bits per byte: what the source's `own` tokens take, what the target's take as
    `aligned` with nothing but the source and as `filled` in, what alignment `costs`; and the share of `hits` and of
    `blind_hits`. Those flatter no alignment that follows the text."""
    names = {name for sums in by_domain.values() for name in sums}
    total = {name: sum(sums.get(name, 0.0) for sums in by_domain.values()) for name in names}
    own = total["own_nll"] / max(total["own_bytes"], 1) / np.log(2)
    gold, filled = (total[name] / max(total["gold_bytes"], 1) / np.log(2) for name in ("gold_nll", "filled_nll"))
    return {
        "own_bits_per_byte": float(own),
        "aligned_bits_per_byte": float(gold),
        "filled_bits_per_byte": float(filled),
        "cost": float(gold - own),
        "hits": total["gold_hits"] / max(total["gold_positions"], 1),
        # Parts from before this was measured do not have it.
        "blind_hits": total["blind_hits"] / total["blind_positions"] if total.get("blind_positions") else math.nan,
    }


def shares(by_domain: dict[str, dict[str, int]]) -> dict[str, float]:
    """Status -> share of the positions of all domains, from counts per domain."""
    names = next(iter(by_domain.values()))
    counts = {name: sum(of_domain[name] for of_domain in by_domain.values()) for name in names}
    total = max(1, sum(counts.values()))
    return {name: count / total for name, count in counts.items()}


def held_out(aligned: Manifest) -> tuple[str, dict[str, Any]]:
    """The split by which alignment is judged, and the statistics of its parts, summed up."""
    split = judged_split([part.split for part in aligned.parts])
    judged = build_manifest(aligned.kind, aligned.config, aligned.identity, aligned.parts_of(split))
    return split, judged.stats


def judged_split(splits: Sequence[str]) -> str:
    """`validation`; another one where `precompute.splits` leaves that out."""
    return "validation" if "validation" in splits else splits[0]
