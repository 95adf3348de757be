"""Samples -> tensors: right-padded rows of one chunk or several, and the flat positions that the losses run over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fusionx.train.data.shard_stream import Sample
from fusionx.train.objective.spans import Spans, joined, shifted
from fusionx.train.objective.teacher import Candidates


class Batch(NamedTuple):
    """B rows of one chunk or of several, one after another; N positions have a next token in their chunk.

    input_ids, attention_mask: int64 [B, L]. position_ids: int64 [B, L], from 0 for every chunk and for the padding,
    where a chunk is to see itself only; else None. A model that is given such positions and no attention mask makes
    the mask of them, and `attention_mask` then only tells tokens from padding.
    predicts: bool [B, L], the N positions. labels: int64 [N]. candidates: at the same N positions, None where the
    stream has none. domains, keys: of the chunks, row after row. spans: over the N positions, None where the samples
    have none.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None
    predicts: Tensor
    labels: Tensor
    candidates: Candidates | None
    domains: list[str]
    keys: list[tuple[int, int]]
    spans: Spans[Tensor] | None = None

    def to(self, device: torch.device) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, change: Callable[[Any], Any]) -> Batch:
        """This batch with every tensor changed (or array, where one stands for a tensor), the candidates' too."""
        changed = {
            name: change(field) for name, field in self._asdict().items() if isinstance(field, Tensor | np.ndarray)
        }
        if self.candidates is not None:
            changed["candidates"] = Candidates(*map(change, self.candidates))
        if self.spans is not None:
            changed["spans"] = Spans(*map(change, self.spans))
        return self._replace(**changed)


def collate(samples: Sequence[Sample], pad_id: int) -> Batch:
    """A batch whose rows are one chunk each."""
    return collate_blocks([[sample] for sample in samples], pad_id)


def collate_blocks(blocks: Sequence[Sequence[Sample]], pad_id: int, document_mask: bool = False) -> Batch:
    """A batch of one row per block. The last position of a chunk predicts nothing and is left out of the losses.

    Args:
        blocks: at least one. document_mask: a chunk sees itself only, so the batch gets `position_ids`.
    """
    samples = [sample for block in blocks for sample in block]
    filled = [sum(len(sample.input_ids) for sample in block) for block in blocks]
    shape = (len(blocks), max(1, *filled))  # a model takes no rows of length 0
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    predicts = np.zeros(shape, dtype=bool)
    for row, block in enumerate(blocks):
        start = 0
        for sample in block:
            end = start + len(sample.input_ids)
            input_ids[row, start:end] = sample.input_ids
            position_ids[row, start:end] = np.arange(end - start)
            predicts[row, start : max(start, end - 1)] = True
            start = end
        position_ids[row, start:] = np.arange(shape[1] - start)
    mask = np.arange(shape[1]) < np.array(filled)[:, None]
    labels = torch.from_numpy(np.concatenate([sample.input_ids[1:] for sample in samples]).astype(np.int64))
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(mask.astype(np.int64)),
        torch.from_numpy(position_ids) if document_mask else None,
        torch.from_numpy(predicts),
        labels,
        _candidates(samples, labels) if len(samples[0].nll_per_byte) else None,
        [sample.domain for sample in samples],
        [sample.key for sample in samples],
        _spans(samples),
    )


def _candidates(samples: Sequence[Sample], labels: Tensor) -> Candidates:
    ids = np.concatenate([sample.ids[:-1] for sample in samples])
    probs = np.concatenate([sample.probs[:-1] for sample in samples])
    label_probs = np.concatenate([sample.label_probs[:-1] for sample in samples])
    status = np.concatenate([sample.status[:-1] for sample in samples])
    chunk_of = np.repeat(np.arange(len(samples)), [max(0, len(sample.input_ids) - 1) for sample in samples])
    # An aligned position whose every entry was dropped by the map says nothing. The best entry comes first.
    aligned = (status > 0) & (probs[..., 0] > 0)
    return Candidates(
        torch.from_numpy(ids),
        torch.from_numpy(probs),
        torch.from_numpy(label_probs),
        torch.from_numpy(aligned),
        labels,
        torch.from_numpy(np.stack([sample.nll_per_byte for sample in samples])),
        torch.from_numpy(chunk_of.astype(np.int64)),
    )


def _spans(samples: Sequence[Sample]) -> Spans[Tensor] | None:
    moved, first = [], 0
    for sample in samples:
        if sample.spans is not None:
            moved.append(shifted(sample.spans, first))
        first += max(0, len(sample.input_ids) - 1)
    return Spans(*map(torch.from_numpy, joined(moved))) if moved else None
