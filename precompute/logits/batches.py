"""How a unit's tokens go through a model: in windows of its context, and windows of similar length in batches.

Everything that follows from the text alone is settled here, before a device is asked for: `Plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fusionx.contract.shapes import Shapes, batches_by_length
from fusionx.contract.tokens.encoding import Encoding

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class UnitTokens:
    """A unit's tokens as the model reads them, row after row: chunks, and of a chat the conversations that go on from
    none of the others.

    ids: int64 [N]. labels: int64 [N], the next token of the same row, -1 at its end. offsets: int64 [rows + 1]. kept:
    int64 [P], the places whose distributions are wanted, ascending; None: all. stored: int64 [S], of every token that
    is stored, chunk after chunk, its place among the kept ones; None: they are the same.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    offsets: np.ndarray
    kept: np.ndarray | None = None
    stored: np.ndarray | None = None

    @classmethod
    def of(cls, encodings: list[Encoding]) -> UnitTokens:
        import torch

        hosts = hosts_of(encodings)
        rows = [encodings[host].ids for host in dict.fromkeys(hosts)]
        offsets = np.cumsum([0, *map(len, rows)])
        ids = np.concatenate([np.zeros(0, np.int64), *rows])
        labels = np.append(ids[1:], -1)[: len(ids)]
        labels[offsets[1:][offsets[1:] > 0] - 1] = -1
        tokens = torch.from_numpy(ids), torch.from_numpy(labels), offsets
        if not any(encoding.context for encoding in encodings):
            return cls(*tokens)
        start = dict(zip(dict.fromkeys(hosts), offsets.tolist(), strict=False))
        places = [
            start[host] + np.arange(encoding.context, len(encoding.ids))
            for host, encoding in zip(hosts, encodings, strict=True)
        ]
        kept, stored = np.unique(np.concatenate(places), return_inverse=True)
        return cls(*tokens, kept, stored)

    def place(self, result: int) -> int:
        """Where the token is that a result is of."""
        return result if self.kept is None else int(self.kept[result])


def hosts_of(encodings: list[Encoding]) -> list[int]:
    """Of every encoding the one whose tokens it shares: itself, or a later one that goes on from it, as one answer of a
    conversation does from the answer before."""
    hosts = list(range(len(encodings)))
    for row in reversed(range(len(encodings) - 1)):
        ids, following = encodings[row].ids, encodings[row + 1].ids
        if encodings[row + 1].context >= len(ids) - 1 > 0 and np.array_equal(ids, following[: len(ids)]):
            hosts[row] = hosts[row + 1]
    return hosts


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a row go through the model; the distributions from `fresh` on are kept.

    `lead` tokens stand before them: the BOS with which the model was trained to begin, where the row's own is cut off.
    """

    row: int
    start: int
    fresh: int
    stop: int
    lead: int = 0

    @property
    def length(self) -> int:
        return self.lead + self.stop - self.start


def windows_of(lengths: list[int], context: int | None, overlap: int | None, add_bos: bool = False) -> Iterator[Window]:
    """One window per row that has tokens; of a row longer than `context` as many as it takes.

    Consecutive windows share `overlap` tokens; these are kept from the earlier one, where more precedes them. With
    `add_bos` the rows begin with one, and every window does.
    """
    for row, length in enumerate(lengths):
        start = fresh = lead = 0
        while fresh < length:
            stop = length if context is None or overlap is None else min(length, start + context - lead)
            yield Window(row, start, fresh, stop, lead)
            start, fresh, lead = stop - (overlap or 0), stop, int(add_bos)


@dataclass(frozen=True)
class WindowBatch:
    """Windows of one forward pass, padded to the shape [rows, length]."""

    windows: list[Window]
    shape: tuple[int, int]


def batches_of(
    windows: list[Window], batch_tokens: int, shapes: Shapes, context: int | None = None, switch: int | None = None
) -> Iterator[WindowBatch]:
    """The windows, in batches of similar length.

    Models of LongRoPE turn a whole batch by what its longest row asks for, padding included: windows within and beyond
    the `switch` never share one.
    """
    within, beyond = windows, list[Window]()
    if switch is not None:
        within, beyond = ([w for w in windows if (w.length > switch) == longer] for longer in (False, True))
    for group, most in ((within, context if switch is None else switch), (beyond, context)):
        for batch in batches_by_length([window.length for window in group], batch_tokens, shapes, most):
            yield WindowBatch([group[number] for number in batch.rows], (batch.size, batch.length))


@dataclass(frozen=True)
class Plan:
    """A unit's way through a model.

    Attributes:
        shapes: [rows, length] of every batch.
        counts: how many positions of every batch are kept; of these there are N in all, `UnitTokens.kept`.
        ids: int64 [sum of rows * length], the batches' padded tokens, one batch behind the other.
        positions: int64 [N], where a kept position is in its own, flattened batch.
        places: int64 [N], where it is among the unit's wanted ones.
        labels: int64 [N], its next token, -1 where there is none.
    """

    shapes: list[tuple[int, int]]
    counts: list[int]
    ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, tokens: UnitTokens, batches: Iterable[WindowBatch], bos: int | None = None) -> Plan:
        """`bos` is the token that leads windows whose own is cut off."""
        import torch

        laid = [(batch.shape, *_laid_out(tokens, batch, bos)) for batch in batches]
        columns = zip(*(arrays for _, *arrays in laid), strict=True) if laid else ([np.zeros(0, np.int64)],) * 3
        ids, positions, places = (torch.from_numpy(np.concatenate(list(column))) for column in columns)
        counts = [len(positions) for _, _, positions, _ in laid]
        labels = tokens.labels[places]
        if tokens.kept is not None:
            places = torch.from_numpy(np.searchsorted(tokens.kept, places.numpy()))
        return cls([shape for shape, *_ in laid], counts, ids, positions, places, labels)

    def to(self, device: torch.device) -> Plan:
        """On the device, by one copy that the host does not wait for."""
        import torch

        if device.type == "cpu":
            return self
        parts = (self.ids, self.positions, self.places, self.labels)
        sent = torch.cat(parts).pin_memory().to(device, non_blocking=True)
        return Plan(self.shapes, self.counts, *sent.split([len(part) for part in parts]))

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Token ids int64 [B, T] and kept positions int64 [n] of every batch."""
        ids = self.ids.split([rows * length for rows, length in self.shapes])
        for shape, batch, positions in zip(self.shapes, ids, self.positions.split(self.counts), strict=True):
            yield batch.view(shape), positions


def _laid_out(tokens: UnitTokens, batch: WindowBatch, bos: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A batch's padded ids int64 [rows * length], its kept positions and their places in the unit, both int64 [n]."""
    size, length = batch.shape
    columns = np.arange(length)
    ids = np.zeros((size, length), np.int64)
    windows = np.array([(tokens.offsets[w.row], w.start, w.fresh, w.lead, w.length) for w in batch.windows], np.int64)
    first, start, fresh, lead, filled = windows.T[:, :, None]
    inside = columns < filled
    places = first + start - lead + columns
    ids[: len(windows)][inside] = tokens.ids.numpy()[places[inside]]
    if bos is not None:
        ids[: len(windows), 0][lead[:, 0] > 0] = bos
    kept = inside & (columns >= lead + fresh - start)
    if tokens.kept is not None:
        kept &= np.isin(places, tokens.kept)
    return ids.reshape(-1), np.flatnonzero(kept), places[kept]
