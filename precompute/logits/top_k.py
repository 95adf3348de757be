"""Top-k statistics of next-token distributions: all that ever leaves a block of logits."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


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
    return (by_kernel if logits.device.type == "cpu" else by_torch)(logits, labels, k, vocab_size)


def by_kernel(logits: torch.Tensor, labels: torch.Tensor, k: int, vocab_size: int) -> TopK:
    """`top_k_statistics` of logits on a CPU, in as many threads as torch has."""
    import torch

    from fusionx.precompute.logits.cpu_kernel import new_sums, statistics

    if logits.dtype not in (torch.float32, torch.bfloat16):
        logits = logits.float()
    bits, shift = (torch.int16, 16) if logits.dtype == torch.bfloat16 else (torch.int32, 0)
    made = statistics_in(shared_memory(len(logits), k), k)
    arrays = [values.numpy() for values in (logits.contiguous().view(bits), labels, *made)]

    def run(rows: slice) -> None:
        some_logits, some_labels, *some_made = (values[rows] for values in arrays)
        statistics(some_logits, shift, some_labels, vocab_size, new_sums(), *some_made)

    share = max(1, -(-len(logits) // torch.get_num_threads()))
    with ThreadPoolExecutor() as threads:
        list(threads.map(run, [slice(start, start + share) for start in range(0, len(logits), share)]))
    return made


def by_torch(logits: torch.Tensor, labels: torch.Tensor, k: int, vocab_size: int) -> TopK:
    """`top_k_statistics` on whatever device: it waits for nothing, and starts few kernels."""
    import torch

    ids = _top_ids(logits[:, :vocab_size], k)
    top = logits.gather(1, ids).float()
    label = logits.gather(1, labels.clamp(min=0)[:, None]).float()
    highest = top[:, :1]
    if vocab_size < logits.shape[1]:
        highest = torch.maximum(highest, logits[:, vocab_size:].amax(-1, keepdim=True).float())
    # The tail is summed, not taken from 1: of a peaked distribution the difference would keep no correct digit.
    logits.scatter_(1, ids, -torch.inf)
    # Of 16 bits the subtraction widens: two passes over them less, and the same float32 values.
    shifted = logits.sub_(highest) if logits.dtype == torch.float32 else logits.sub(highest)
    rest = shifted.exp_().sum(-1, keepdim=True)
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
    maxima = values[:, :whole].unflatten(1, (groups, width)).amax(-1)
    chosen = _highest(maxima, k, ordered=False).sort(dim=-1).values
    inside = (chosen[:, :, None] * width + torch.arange(width, device=device)).flatten(1)
    beyond = torch.arange(whole, size, device=device).expand(len(values), -1)
    ids = torch.cat([inside, beyond], dim=-1)  # ascending, so that a lower place is a lower id
    return ids.gather(1, _highest(values.gather(1, ids), k))


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
