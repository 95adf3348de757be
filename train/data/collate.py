"""Samples -> tensors: right-padded rows of one chunk or several, and the flat positions that the losses run over.

Everything in a batch has one of the few shapes that `contract.shapes` chooses for the device: rows, positions and
chunks are filled up with ones that have no part in any loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fusionx.contract.shapes import EXACT, Shapes
from fusionx.contract.shards.fixed_share import fixed_share_weights
from fusionx.train.data.conversations import goes_on
from fusionx.train.data.shard_stream import Sample
from fusionx.train.objective.fused_head import IGNORED
from fusionx.train.objective.teacher import Candidates

_ALIGNMENT = 64
"""Bytes; where a tensor may begin in a batch's buffer."""


class Batch(NamedTuple):
    """B rows of one chunk or of several, one after another; N positions, those with a next token in their chunk first.

    input_ids: int64 [B, L]. position_ids: int64 [B, L], from 0 for every chunk and for the padding, where a chunk is to
    see itself only; else None. positions: int64 [N], places in the flattened rows. labels: int64 [N], `IGNORED` where a
    position only fills up. candidates: at the same N positions, None where the stream has none. domains: int64
    [chunks], each chunk's, -1 where it only fills up. keys: of the chunks, row after row. tokens: how many are no
    padding. buffer: uint8, the one piece of memory that holds all tensors (`in_one_piece`), or None.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    positions: Tensor
    labels: Tensor
    candidates: Candidates | None
    domains: Tensor
    keys: list[tuple[int, int]]
    tokens: int
    buffer: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """On `device`; from one piece of page-locked memory in one copy, for which nothing waits."""
        if self.buffer is None:
            return self.map(lambda tensor: tensor.to(device, non_blocking=True))
        moved = self.buffer.to(device, non_blocking=True)
        return self.map(lambda tensor: _view(moved, tensor.storage_offset() * tensor.element_size(), tensor))

    def in_one_piece(self) -> Batch:
        """The same in one piece of memory, page-locked where there is a GPU to copy it to."""
        sizes: list[int] = []
        self.map(lambda tensor: sizes.append(_aligned(tensor.nbytes)))
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        starts = iter(np.cumsum([0, *sizes]).tolist())
        return self.map(lambda tensor: _view(buffer, next(starts), tensor).copy_(tensor))._replace(buffer=buffer)

    def map(self, change: Callable[[Any], Any]) -> Batch:
        """This batch with every tensor changed (or array, where one stands for a tensor), the candidates' too."""
        fields = self._replace(buffer=None)._asdict()
        changed = {name: change(field) for name, field in fields.items() if isinstance(field, Tensor | np.ndarray)}
        if self.candidates is not None:
            changed["candidates"] = Candidates(*map(change, self.candidates))
        return self._replace(**changed, buffer=None)


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """What begins at byte `start`, in dtype and shape as `like`."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def collate(samples: Sequence[Sample], pad_id: int, **how: Any) -> Batch:
    """A batch whose rows are one chunk each; `how` as in `collate_blocks`."""
    return collate_blocks([[sample] for sample in samples], pad_id, **how)


def collate_blocks(
    blocks: Sequence[Sequence[Sample]],
    pad_id: int,
    document_mask: bool = False,
    domains: Sequence[str] | None = None,
    *,
    shapes: Shapes = EXACT,
    longest: int | None = None,
) -> Batch:
    """A batch of one row per block. The last position of a chunk predicts the end of its document, if it is one; else
    it predicts nothing and is left out of the losses.

    Args:
        blocks: at least one; rows without a chunk only fill up. document_mask: a chunk sees itself only, so the batch
            gets `position_ids`. domains: in the order in which they are numbered; None: the samples', sorted.
        longest: what a row may be padded to at most.
    """
    samples = [sample for block in blocks for sample in block]
    laid = [_laid(block) for block in blocks]
    filled = [sum(len(piece.ids) for piece in row) for row in laid]
    shape = (len(blocks), shapes.length(max(1, *filled), longest))  # a model takes no rows of length 0
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    predicts = np.zeros(shape, dtype=bool)
    for row, pieces in enumerate(laid):
        start = 0
        for piece in pieces:
            end = start + len(piece.ids)
            input_ids[row, start:end] = piece.ids
            position_ids[row, start:end] = np.arange(piece.position, piece.position + len(piece.ids))
            predicts[row, start + piece.first : start + piece.first + piece.predicted] = True
            start = end
        position_ids[row, start:] = np.arange(shape[1] - start)
    positions = np.flatnonzero(predicts)
    size = shapes.length(len(positions), predicts.size)
    chunks = shapes.length(len(samples) + (size > len(positions)))
    # Positions that fill up are spread over the rows: where gradients of a place are summed, one would be crowded.
    more = np.arange(size - len(positions)) % predicts.size
    labels = torch.from_numpy(_filled_up([sample.next_ids.astype(np.int64) for sample in samples], size, IGNORED))
    names = sorted({sample.domain for sample in samples}) if domains is None else list(domains)
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids) if document_mask else None,
        torch.from_numpy(np.concatenate([positions, more])),
        labels,
        _candidates(samples, labels, chunks) if len(samples[0].nll_per_byte) else None,
        torch.from_numpy(_filled_up([np.array([names.index(sample.domain) for sample in samples])], chunks, -1)),
        [sample.key for sample in samples],
        sum(filled),
    )


class _Piece(NamedTuple):
    """What a sample adds to its row: ids int32 [n], the first of which has this position in its text. `predicted`
    positions from `first` on predict."""

    ids: np.ndarray
    position: int
    first: int
    predicted: int


def _laid(block: Sequence[Sample]) -> list[_Piece]:
    """A row's samples one after another; an answer that goes on from the one before adds what is new."""
    pieces, before = [], np.zeros(0, np.int32)
    for sample in block:
        ids, context = sample.read_ids, len(sample.context)
        known = len(before) if goes_on(before, ids, context) else 0
        pieces.append(_Piece(ids[known:], known, context - known, len(sample.next_ids)))
        before = ids
    return pieces


def _candidates(samples: Sequence[Sample], labels: Tensor, chunks: int) -> Candidates:
    size, counts = len(labels), [len(sample.next_ids) for sample in samples]
    of_all = list(zip(samples, counts, strict=True))
    ids = _filled_up([sample.ids[:count] for sample, count in of_all], size, -1)
    probs = _filled_up([sample.probs[:count] for sample, count in of_all], size, 0)
    label_probs = _filled_up([sample.label_probs[:count] for sample, count in of_all], size, np.nan)
    status = _filled_up([sample.status[:count] for sample, count in of_all], size, 0)
    chunk_of = np.repeat(np.arange(len(samples)), counts)
    said = label_probs[: sum(counts)]
    shares = fixed_share_weights(said, np.cumsum([0, *counts])).astype(np.float32)
    # An aligned position whose every entry was dropped by the map says nothing. The best entry comes first.
    aligned = (status > 0) & (probs[..., 0] > 0)
    return Candidates(
        torch.from_numpy(ids),
        torch.from_numpy(probs),
        torch.from_numpy(label_probs),
        torch.from_numpy(aligned),
        labels,
        torch.from_numpy(_filled_up([shares], size, 1 / said.shape[1])),
        torch.from_numpy(_filled_up([sample.nll_per_byte[None] for sample in samples], chunks, np.nan)),
        torch.from_numpy(_filled_up([chunk_of.astype(np.int64)], size, len(samples))),
    )


def _filled_up(pieces: Sequence[np.ndarray], size: int, value: float) -> np.ndarray:
    """The pieces, at least one, one after another, and `value` until there are `size` rows."""
    made = np.empty((size, *pieces[0].shape[1:]), pieces[0].dtype)
    filled = sum(map(len, pieces))
    np.concatenate(pieces, out=made[:filled])
    made[filled:] = value
    return made
