"""Top-k statistics of next-token distributions, block by block, so that fp32 logits of a whole batch never exist."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

_BLOCK_VALUES = 1 << 24
"""fp32 logits held at once: 64 MB."""


class TopK(NamedTuple):
    """Statistics of N positions.

    ids: int64 [N, k], the most probable next tokens, descending. logprobs: float32 [N, k], nats, of the full softmax.
    label_nll: float32 [N], nats, the NLL of the label (0 where the label is -1).
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    label_nll: torch.Tensor


def top_k_statistics(logits: torch.Tensor, labels: torch.Tensor, k: int, vocab_size: int) -> TopK:
    """Top-k log-probabilities and the labels' NLL, in fp32 whatever the logits' dtype.

    Args:
        logits: [N, V], any float dtype, as the model itself gives them (soft-capping and scaling applied).
        labels: int64 [N], the next token of each position, or -1 where there is none.
        vocab_size: ids from here on are padding of the model's head: they keep their share of the softmax (which
            lands in the tail) but never come out.

    Raises:
        FloatingPointError: a position's logits hold NaN or have no finite maximum.
    """
    import torch

    blocks = []
    step = max(1, _BLOCK_VALUES // logits.shape[-1])
    for block, block_labels in zip(logits.split(step), labels.split(step), strict=True):
        values = block.float()
        logsumexp = torch.logsumexp(values, dim=-1, keepdim=True)
        if not torch.isfinite(logsumexp).all():
            raise FloatingPointError("the logits hold NaN or infinity")
        top = torch.topk(values[:, :vocab_size], k, dim=-1)
        label_logits = values.gather(1, block_labels.clamp(min=0)[:, None])
        nll = torch.where(block_labels >= 0, (logsumexp - label_logits)[:, 0], 0.0)
        blocks.append(TopK(top.indices, top.values - logsumexp, nll))
    return TopK(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))
