"""The adaptive selection network (paper, section 4.1, eq. 4-6): which candidates are trusted at each place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.config import Granularity

TOP_FEATURES = 8
FEATURES_PER_CANDIDATE = TOP_FEATURES + 4
_LOG_FLOOR = -12.0
"""Stands for the logarithm of a probability that was not stored (fp16 holds nothing below e^-16.6)."""

_LOG_SCALE, _NLL_SCALE = 0.25, 4.0
"""Bring the features to one scale before the LayerNorm, which would drown the NLL per byte among log-probabilities."""


class SelectionNetwork(nn.Module):
    """LayerNorm, Linear d -> 2d, GELU, Linear 2d -> d, GELU, Linear d -> M (eq. 4).

    `element`: d = M, the candidates' probabilities of one (position, vocabulary id), as in the paper's Algorithm 1.
    `token` and `sequence`: d = M * 12 features, see `candidate_features`.
    """

    def __init__(self, candidates: int, granularity: Granularity) -> None:
        super().__init__()
        self.candidates = candidates
        self.granularity = granularity
        width = candidates if granularity == "element" else candidates * FEATURES_PER_CANDIDATE
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.GELU(),
            nn.Linear(width, candidates),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Selection logits [..., M] from features [..., d]."""
        return self.layers(self.norm(features))


def candidate_features(probs: Tensor, aligned: Tensor, nll_per_byte: Tensor) -> Tensor:
    """What the network sees of every candidate at one position: [N, M * 12], float32.

    Per candidate: its top 8 log-probabilities (times 0.25), entropy (nats, the tail as one symbol), tail mass,
    whether it is aligned here, and the chunk's NLL per byte relative to the candidates' mean (times 4). Token features
    alone show confidence; the last one shows who knows this text.

    Args:
        probs: float32 [N, M, k], descending, 0 where nothing is stored.
        aligned: bool [N, M].
        nll_per_byte: float32 [N, M], nats per byte of the chunk that holds the position; NaN (unknown) becomes 0.
    """
    n, m, k = probs.shape
    logs = probs.clamp(min=torch.finfo(probs.dtype).tiny).log().clamp(min=_LOG_FLOOR)
    tail = (1 - probs.sum(-1)).clamp(min=0)
    entropy = -(probs * logs).sum(-1) - torch.special.xlogy(tail, tail)
    top = logs[..., :TOP_FEATURES]
    if k < TOP_FEATURES:
        top = nn.functional.pad(top, (0, TOP_FEATURES - k), value=_LOG_FLOOR)
    relative = (nll_per_byte - nll_per_byte.nanmean(-1, keepdim=True)).nan_to_num(nan=0.0)
    per_position = torch.cat([_LOG_SCALE * top, entropy[..., None], tail[..., None]], -1) * aligned[..., None]
    features = torch.cat([per_position, aligned[..., None].to(probs.dtype), _NLL_SCALE * relative[..., None]], -1)
    return features.reshape(n, m * FEATURES_PER_CANDIDATE)


def pool_by_chunk(features: Tensor, chunk_of: Tensor, chunks: int) -> Tensor:
    """Means of `features` [N, d] over each chunk's positions, [chunks, d] (the `sequence` granularity)."""
    sums = features.new_zeros(chunks, features.shape[1]).index_add(0, chunk_of, features)
    counts = torch.bincount(chunk_of, minlength=chunks).clamp(min=1)
    return sums / counts[:, None]


def gate(logits: Tensor, available: Tensor) -> Tensor:
    """Softmax over the candidates that are available at a place; 0 for the others and where there is none.

    Args:
        logits: [..., M]. available: bool [..., M].
    """
    masked = logits.masked_fill(~available, float("-inf"))
    anywhere = available.any(-1, keepdim=True)
    return torch.where(anywhere, torch.softmax(masked.where(anywhere, torch.zeros_like(masked)), -1), 0.0)


def select(p: Tensor, tau: float, eps: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Dynamic candidate selection and normalised weights (eq. 5-7).

    Args:
        p: [..., M] from `gate`.

    Returns:
        w [..., M], the weights p * mask / (sum(p * mask) + eps), and mask bool [..., M]: p > tau, or the argmax
        where no candidate passes (never one with p = 0).
    """
    mask = p > tau
    best = nn.functional.one_hot(p.argmax(-1), p.shape[-1]).bool() & (p > 0)
    mask = torch.where(mask.any(-1, keepdim=True), mask, best)
    kept = p * mask
    return kept / (kept.sum(-1, keepdim=True) + eps), mask
