"""Top-k statistics of next-token distributions: all that ever leaves a block of logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


_IN_CACHES = {"cpu": 1 << 18}
"""Logits per thread (fp32: 1 MB) that a kind of device takes through the large steps at once; others take them all."""


class TopK(NamedTuple):
    """Statistics of N positions.

    ids: int32 [N, k], the most probable next tokens, descending; of equally probable ones the lower id comes first.
    logprobs: float32 [N, k], nats, of the full softmax; NaN where a position's logits hold NaN, +inf or nothing finite.
    label_nll: float32 [N], nats, the NLL of the label (0 where the label is -1).
    tail: float32 [N], the probability of everything else: the full softmax without the k.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    label_nll: torch.Tensor
    tail: torch.Tensor


def shared_memory(positions: int, k: int, device: torch.device | None = None) -> torch.Tensor:
    """Room for the statistics of so many positions in one piece, int32 [positions * (2 k + 2)]: one copy moves all."""
    import torch

    return torch.empty(positions * (2 * k + 2), dtype=torch.int32, device=device)


def statistics_in(memory: torch.Tensor, k: int) -> TopK:
    """The statistics that such a piece holds: views, to be read or written."""
    import torch

    positions = len(memory) // (2 * k + 2)
    ids, logprobs, label_nll, tail = memory.split([positions * k, positions * k, positions, positions])
    return TopK(
        ids.view(positions, k),
        logprobs.view(torch.float32).view(positions, k),
        label_nll.view(torch.float32),
        tail.view(torch.float32),
    )


def top_k_statistics(logits: torch.Tensor, labels: torch.Tensor, k: int, vocab_size: int) -> TopK:
    """Top-k log-probabilities, the labels' NLL and the tail, in fp32 whatever the logits' dtype.

    Args:
        logits: [N, V], any float dtype, as the model itself gives them (soft-capping and scaling applied). They serve
            as scratch space and are lost.
        labels: int64 [N], the next token of each position, or -1 where there is none.
        k: at most `vocab_size`.
        vocab_size: ids from here on are padding of the model's head: they keep their share of the softmax (which
            lands in the tail) but never come out.
    """
    import torch

    ids = _top_ids(logits[:, :vocab_size], k)
    top = logits.gather(1, ids).float()
    label = logits.gather(1, labels.clamp(min=0)[:, None]).float()
    highest = top[:, :1]
    if vocab_size < logits.shape[1]:
        highest = torch.maximum(highest, logits[:, vocab_size:].amax(-1, keepdim=True).float())
    # The tail is summed, not taken from 1: of a peaked distribution the difference would keep no correct digit.
    # As integers: a CPU scatters into bfloat16 by way of two copies of all of it.
    integers, infinity = {
        torch.float32: (torch.int32, 0x7F800000),
        torch.float16: (torch.int16, 0x7C00),
        torch.bfloat16: (torch.int16, 0x7F80),
    }[logits.dtype]
    logits.view(integers).scatter_(1, ids, infinity | torch.iinfo(integers).min)
    rest = _sum_of_exp(logits, highest)
    top, label = top - highest, label - highest
    total = top.exp().sum(-1, keepdim=True) + rest
    log_total = total.log()
    nll = torch.where(labels >= 0, (log_total - label)[:, 0], 0.0)
    return TopK(ids.int(), top - log_total, nll, (rest / total)[:, 0])


def _top_ids(values: torch.Tensor, k: int) -> torch.Tensor:
    """Ids int64 [N, k] of the k highest values by (value descending, id ascending).

    The k highest lie in the k groups of neighbouring ids with the highest maxima, so that only these are sorted. The
    same order of ties in both steps makes this exact. Groups of about sqrt(V / k) ids leave least to look through.
    """
    import torch

    size, device = values.shape[1], values.device
    width = 1 << round(math.log2(size / k) / 2)
    groups = size // width
    if groups <= k:
        return _highest(values, k)
    whole = groups * width
    chosen = _highest(_maxima(values[:, :whole], width), k, ordered=False).sort(dim=-1).values
    inside = (chosen[:, :, None] * width + torch.arange(width, device=device)).flatten(1)
    beyond = torch.arange(whole, size, device=device).expand(len(values), -1)
    ids = torch.cat([inside, beyond], dim=-1)  # ascending, so that a lower place is a lower id
    return ids.gather(1, _highest(values.gather(1, ids), k))


def _maxima(values: torch.Tensor, width: int) -> torch.Tensor:
    """Of every `width` neighbours, [N, V / width]."""
    parts = [block.unflatten(1, (-1, width)).amax(-1) for _, block in _in_caches(values)]
    return _joined(parts).to(values.dtype)


def _sum_of_exp(logits: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
    """Sums float32 [N, 1] of exp(logits - highest), of which fp32 logits are lost."""
    import torch

    sums = []
    for rows, block in _in_caches(logits):
        # Of 16 bits an accelerator's subtraction widens: two passes over them less, and the same float32 values.
        shifted = block.sub_(highest[rows]) if block.dtype == torch.float32 else block.sub(highest[rows])
        sums.append(shifted.exp_().sum(-1, keepdim=True))
    return _joined(sums)


def _in_caches(values: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of [N, V], so many at a time as the device's caches hold. A CPU reduces 16 bits more slowly than it widens
    them: they come as float32, each block in the memory of the one before, as new memory takes as long as a step."""
    import torch

    most = _IN_CACHES.get(values.device.type)
    if most is None or not len(values):
        yield slice(None), values
        return
    count = max(1, most * torch.get_num_threads() // values.shape[1])
    memory = None if values.dtype == torch.float32 else torch.empty(min(count, len(values)), values.shape[1])
    for start in range(0, len(values), count):
        rows = slice(start, start + count)
        block = values[rows]
        yield rows, block if memory is None else memory[: len(block)].copy_(block)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _highest(values: torch.Tensor, k: int, ordered: bool = True) -> torch.Tensor:
    """Places int64 [N, k] of the k highest values; of equal ones the lower place comes first.

    They are sorted as integers (value, -place), of which no two are equal: so every device and kernel sorts them
    alike. Values of 16 bits make integers of 32, which take half the traffic.
    """
    import torch

    bits = 8 * values.element_size()
    narrow, wide = {16: (torch.int16, torch.int32), 32: (torch.int32, torch.int64)}[bits]
    last = (1 << bits) - 1
    raw = (values + 0.0).view(narrow)  # + 0.0 makes one of the two zeros
    rising = raw ^ ((raw >> bits - 1) & (last >> 1))  # a negative float's bits grow with its magnitude
    keys = rising.to(wide) << bits
    keys |= torch.arange(last, last - values.shape[1], -1, device=values.device, dtype=wide)
    return torch.topk(keys, k, dim=-1, sorted=ordered).indices
