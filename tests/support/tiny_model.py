"""A language model of a few hundred weights in plain torch, with a tied head: for tests that start processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TinyModel(nn.Module):
    """Embedding, two residual layers, and a head that shares the embedding's weight."""

    def __init__(self, seed: int, vocab_size: int = 41) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(vocab_size, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, vocab_size, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Mean NLL (nats) of the next tokens of int64 [B, L]."""
        hidden = self.embedding(ids[:, :-1])
        for layer in self.layers:
            hidden = hidden + layer(hidden).tanh()
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), ids[:, 1:].flatten())
