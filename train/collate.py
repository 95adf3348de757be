"""Samples -> tensors: right-padded inputs, and the flat positions that the losses run over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from train.losses import Candidates
from train.stream import Sample


class Batch(NamedTuple):
    """input_ids, attention_mask: int64 [B, L]. predicts: bool [B, L], positions with a next token; N of them.

    labels: int64 [N]. candidates: at the same N positions, None where the stream has none. domains: of the B chunks.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predicts: Tensor
    labels: Tensor
    candidates: Candidates | None
    domains: list[str]
    keys: list[tuple[int, int]]

    def to(self, device: torch.device) -> Batch:
        moved = [field.to(device, non_blocking=True) if isinstance(field, Tensor) else field for field in self]
        if self.candidates is not None:
            moved[4] = Candidates(*(field.to(device, non_blocking=True) for field in self.candidates))
        return Batch(*moved)  # type: ignore[arg-type]


def collate(samples: Sequence[Sample], pad_id: int) -> Batch:
    """Joins samples; the last position of a chunk predicts nothing and is left out of the losses."""
    lengths = np.array([len(sample.input_ids) for sample in samples])
    input_ids = np.full((len(samples), lengths.max()), pad_id, dtype=np.int64)
    for row, sample in enumerate(samples):
        input_ids[row, : lengths[row]] = sample.input_ids
    columns = np.arange(input_ids.shape[1])
    mask = columns < lengths[:, None]
    predicts = columns < lengths[:, None] - 1
    labels = np.concatenate([sample.input_ids[1:] for sample in samples]).astype(np.int64)
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(mask.astype(np.int64)),
        torch.from_numpy(predicts),
        torch.from_numpy(labels),
        _candidates(samples, labels) if len(samples[0].nll_per_byte) else None,
        [sample.domain for sample in samples],
        [sample.key for sample in samples],
    )


def _candidates(samples: Sequence[Sample], labels: np.ndarray) -> Candidates:
    ids = np.concatenate([sample.ids[:, :-1].transpose(1, 0, 2) for sample in samples]).astype(np.int64)
    probs = np.concatenate([sample.probs[:, :-1].transpose(1, 0, 2) for sample in samples])
    status = np.concatenate([sample.status[:, :-1].T for sample in samples])
    chunk_of = np.repeat(np.arange(len(samples)), [max(0, len(sample.input_ids) - 1) for sample in samples])
    # An aligned position whose every entry was dropped by the map says nothing.
    aligned = (status > 0) & (probs.sum(-1) > 0)
    return Candidates(
        torch.from_numpy(ids),
        torch.from_numpy(probs),
        torch.from_numpy(aligned),
        torch.from_numpy(labels),
        torch.from_numpy(np.stack([sample.nll_per_byte for sample in samples])),
        torch.from_numpy(chunk_of.astype(np.int64)),
    )
