"""Carries top-k distributions over source ids into the target's vocabulary and positions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from align.vocab_map import VocabMap
from contract.codec import probabilities

_NO_ID = np.iinfo(np.int32).max


def project(
    top_ids: npt.NDArray[np.integer],
    top_logprobs: npt.NDArray[np.floating],
    top_tail: npt.NDArray[np.floating],
    source_index: npt.NDArray[np.integer],
    vocab_map: VocabMap,
    k_out: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Distributions over target ids at target positions (paper section 3.1, distribution-wise alignment).

    A source token's probability goes to the target token that it maps to; probabilities that meet on one id are
    summed; the `k_out` largest are kept. What maps nowhere, what is cut off, and what the source's own entries left out
    is the tail: nothing is renormalised here. A source's entries sum to 1 - its tail (`contract.codec.probabilities`),
    and kept + tail = 1 holds for what comes out.

    Args:
        top_ids: [S, k] source ids; ids outside the map (padding -1, a head larger than the tokenizer) are dropped.
        top_logprobs: [S, k] natural logarithms under the full softmax, -inf for padding.
        top_tail: [S] probability outside the k.
        source_index: [L] row of the source for every target position, -1 where not aligned.

    Returns:
        ids int32 [L, k_out] and probs float32 [L, k_out], descending by probability, equal ones by ascending id,
        padded with id -1 and probability 0 (the only entries of probability 0); tail float32 [L], the mass outside
        `ids`. A position that is not aligned has only padding and tail 1.
    """
    rows = np.flatnonzero(source_index >= 0)
    picked = source_index[rows]
    mapped = _mapped(top_ids[picked], vocab_map.target_ids)
    mass = probabilities(top_logprobs[picked], top_tail[picked], np.float64)
    mass[mapped == _NO_ID] = 0.0

    row_ids, row_probs = _descending(*_merged(mapped, mass))
    kept = min(k_out, row_ids.shape[1])
    ids = np.full((len(source_index), k_out), -1, np.int32)
    probs = np.zeros((len(source_index), k_out), np.float32)
    tail = np.ones(len(source_index), np.float32)
    ids[rows, :kept] = row_ids[:, :kept]
    probs[rows, :kept] = row_probs[:, :kept]
    tail[rows] = np.maximum(1.0 - row_probs[:, :kept].sum(axis=1, dtype=np.float64), 0.0)
    return ids, probs, tail


def _mapped(source_ids: npt.NDArray[np.integer], target_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Target ids, `_NO_ID` for what is dropped."""
    # One extra entry takes every id that the map does not cover.
    padded = np.append(np.where(target_ids < 0, _NO_ID, target_ids), _NO_ID).astype(np.int32)
    known = (source_ids >= 0) & (source_ids < len(target_ids))
    return padded[np.where(known, source_ids, len(target_ids))]


def _merged(
    ids: npt.NDArray[np.int32], mass: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Rows sorted by id, each id's mass summed at its first place; later places of the same id have mass 0."""
    columns = ids.shape[1]
    # Id and place in one integer: sorting these is several times faster than argsort and two gathers.
    key = np.sort((ids.astype(np.int64) << 16) | np.arange(columns), axis=1)
    ids = (key >> 16).astype(np.int32)
    flat = np.take_along_axis(mass, key & 0xFFFF, axis=1).reshape(-1)
    head = np.ones(ids.shape, bool)
    head[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(head)
    summed = np.zeros(flat.shape, np.float32)
    if len(starts):
        summed[starts] = np.add.reduceat(flat, starts)
    return ids, summed.reshape(ids.shape)


def _descending(
    ids: npt.NDArray[np.int32], mass: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Rows (sorted by id) re-sorted by descending mass, ties by id; entries of mass 0 get id -1."""
    # The bit pattern of a non-negative float32 grows with its value.
    falling = np.int64(0x7FFFFFFF) - mass.view(np.int32)
    order = np.sort((falling << 16) | np.arange(ids.shape[1]), axis=1) & 0xFFFF
    mass = np.take_along_axis(mass, order, axis=1)
    return np.where(mass > 0, np.take_along_axis(ids, order, axis=1), np.int32(-1)), mass
