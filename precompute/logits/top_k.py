"""Top-k statistics of next-token distributions: all that ever leaves a block of logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

_LOW = 0xFFFFFFFF
"""The low half of a sorting key, which holds the id."""


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

    values = logits.float()
    ids = _top_ids(values[:, :vocab_size], k)
    top = values.gather(1, ids)
    label = values.gather(1, labels.clamp(min=0)[:, None])
    highest = top[:, :1]
    if vocab_size < values.shape[1]:
        highest = torch.maximum(highest, values[:, vocab_size:].amax(-1, keepdim=True))
    # The tail is summed, not taken from 1: of a peaked distribution the difference would keep no correct digit.
    rest = values.scatter_(1, ids, -torch.inf).sub_(highest).exp_().sum(-1, keepdim=True)
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
        ids = torch.arange(size, device=device).expand_as(values)
    else:
        whole = groups * width
        highest = values[:, :whole].unflatten(1, (groups, width)).amax(-1)
        chosen = torch.topk(_keys(highest, torch.arange(groups, device=device)), k, dim=-1).indices
        inside = (chosen[:, :, None] * width + torch.arange(width, device=device)).flatten(1)
        beyond = torch.arange(whole, size, device=device).expand(len(values), -1)
        ids = torch.cat([inside, beyond], dim=-1)
        values = values.gather(1, ids)
    return _LOW - (torch.topk(_keys(values, ids), k, dim=-1).values & _LOW)


def _keys(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """int64, ordered as (float32 value, -id): no two are equal, so that every device and kernel sorts them alike."""
    import torch

    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes one of the two zeros
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # a negative float's bits grow with its magnitude
    return (ordered.long() << 32) | (_LOW - ids)
