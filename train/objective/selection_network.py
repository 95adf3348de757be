"""The adaptive selection network (paper, section 4.1, eq. 4-7): which candidates are trusted at each place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusionx.train.config import Feature, SelectionConfig

TOP_FEATURES = 8
FEATURE_WIDTHS: dict[Feature, int] = {
    "logprobs": TOP_FEATURES,
    "entropy": 1,
    "tail": 1,
    "aligned": 1,
    "nll_per_byte": 1,
}
_LOG_FLOOR = -12.0
"""Stands for the logarithm of a probability that was not stored (fp16 holds nothing below e^-16.6)."""

_LOG_SCALE, _NLL_SCALE = 0.25, 4.0
"""Bring the features to one scale before the LayerNorm, which would drown the NLL per byte among log-probabilities."""


class SelectionNetwork(nn.Module):
    """LayerNorm, then by `config.layers` (d = M f, for M candidates of f features each):

    `linear3`: Linear d -> 2d, GELU, Linear 2d -> d, GELU, Linear d -> M (eq. 4). `linear1`: Linear d -> M.
    `conv`: three convolutions of width 3 along the candidates, f -> 2f -> f -> 1, with GELU between them.

    `element` sees the candidates' probabilities of one (position, vocabulary id), f = 1, as in the paper's Algorithm
    1; `token` and `sequence` see `candidate_features`.
    """

    def __init__(self, candidates: int, config: SelectionConfig) -> None:
        super().__init__()
        self.candidates = candidates
        self.config = config
        self.features = 1 if config.granularity == "element" else sum(FEATURE_WIDTHS[name] for name in config.features)
        width = candidates * self.features
        self.norm = nn.LayerNorm(width)
        self.layers = _layers(config.layers, candidates, self.features)
        self.noise = nn.Linear(width, candidates) if config.metric == "noise" else None
        for layer in self.layers:
            if isinstance(layer, nn.Linear | nn.Conv1d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        if self.noise is not None:
            nn.init.zeros_(self.noise.weight)
            nn.init.zeros_(self.noise.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Selection logits [..., M] from features [..., M, f]; in training with the metric's randomness in them."""
        flat = self.norm(features.flatten(-2))
        if self.config.layers == "conv":
            places = flat.reshape(-1, self.candidates, self.features).transpose(1, 2)
            logits = self.layers(places).reshape(*flat.shape[:-1], self.candidates)
        else:
            logits = self.layers(flat)
        if self.noise is not None and self.training:  # Shazeer et al. 2017, eq. 4
            return logits + torch.randn_like(logits) * nn.functional.softplus(self.noise(flat))
        if self.config.metric == "gumbel" and self.training:  # Jang et al. 2016, temperature 1
            return logits - torch.empty_like(logits).exponential_().log()
        return logits


def _layers(kind: str, candidates: int, features: int) -> nn.Sequential:
    width = candidates * features
    if kind == "linear1":
        return nn.Sequential(nn.Linear(width, candidates))
    if kind == "linear3":
        sizes = [(width, 2 * width), (2 * width, width), (width, candidates)]
        first, second, third = (nn.Linear(*size) for size in sizes)
        return nn.Sequential(first, nn.GELU(), second, nn.GELU(), third)
    channels = [(features, 2 * features), (2 * features, features), (features, 1)]
    one, two, three = (nn.Conv1d(*pair, kernel_size=3, padding=1) for pair in channels)
    return nn.Sequential(one, nn.GELU(), two, nn.GELU(), three)


def candidate_features(wanted: list[Feature], probs: Tensor, aligned: Tensor, nll_per_byte: Tensor) -> Tensor:
    """What the network sees of every candidate at one position: [N, M, f], float32, in the order of `wanted`.

    `logprobs`: the top 8 (times 0.25). `entropy`: nats, the tail as one symbol. `tail`: its mass. `aligned`: whether it
    is, here. `nll_per_byte`: the chunk's, relative to the candidates' mean (times 4). The first four show confidence,
    the last who knows this text.

    Args:
        probs: float32 [N, M, k], descending, 0 where nothing is stored.
        aligned: bool [N, M].
        nll_per_byte: float32 [N, M], nats per byte of the chunk that holds the position; NaN (unknown) becomes 0.
    """
    k = probs.shape[-1]
    logs = probs.clamp(min=torch.finfo(probs.dtype).tiny).log().clamp(min=_LOG_FLOOR)
    tail = (1 - probs.sum(-1)).clamp(min=0)
    top = logs[..., :TOP_FEATURES]
    if k < TOP_FEATURES:
        top = nn.functional.pad(top, (0, TOP_FEATURES - k), value=_LOG_FLOOR)
    here = aligned.to(probs.dtype)
    columns: dict[Feature, Tensor] = {
        "logprobs": _LOG_SCALE * top * here[..., None],
        "entropy": (-(probs * logs).sum(-1) - torch.special.xlogy(tail, tail)) * here,
        "tail": tail * here,
        "aligned": here,
        "nll_per_byte": _NLL_SCALE * (nll_per_byte - nll_per_byte.nanmean(-1, keepdim=True)).nan_to_num(nan=0.0),
    }
    return torch.cat([columns[name].reshape(*aligned.shape, FEATURE_WIDTHS[name]) for name in wanted], -1)


def pool_by_chunk(features: Tensor, chunk_of: Tensor, chunks: int) -> Tensor:
    """Means of `features` [N, ...] over each chunk's positions, [chunks, ...] (the `sequence` granularity)."""
    sums = features.new_zeros(chunks, *features.shape[1:]).index_add(0, chunk_of, features)
    counts = features.new_zeros(chunks).index_add(0, chunk_of, features.new_ones(len(chunk_of))).clamp(min=1)
    return sums / counts.reshape(-1, *[1] * (features.dim() - 1))


def gate(logits: Tensor, available: Tensor) -> Tensor:
    """Softmax over the candidates that are available at a place; 0 for the others and where there is none.

    Args:
        logits: [..., M]. available: bool [..., M].
    """
    masked = logits.masked_fill(~available, float("-inf"))
    anywhere = available.any(-1, keepdim=True)
    return torch.where(anywhere, torch.softmax(masked.where(anywhere, torch.zeros_like(masked)), -1), 0.0)


def choose(p: Tensor, config: SelectionConfig) -> Tensor:
    """The candidates that are fused, bool [..., M] (eq. 5-6); never one with p = 0.

    Args:
        p: [..., M] from `gate`.
    """
    if config.choice == "all":
        return p > 0
    if config.choice == "top_n":
        best = p.topk(min(config.n, p.shape[-1]), -1).indices
        return torch.zeros_like(p, dtype=torch.bool).scatter(-1, best, True) & (p > 0)
    mask = p > config.tau
    best = one_hot(p.argmax(-1), p.shape[-1]) & (p > 0)
    return torch.where(mask.any(-1, keepdim=True), mask, best)


def one_hot(places: Tensor, size: int) -> Tensor:
    """bool [..., size]; unlike torch's it never asks the device whether the places are valid."""
    return places[..., None] == torch.arange(size, device=places.device)


def normalised(p: Tensor, mask: Tensor, eps: float = 1e-9) -> Tensor:
    """p * mask / (sum(p * mask) + eps), [..., M] (eq. 7)."""
    kept = p * mask
    return kept / (kept.sum(-1, keepdim=True) + eps)
