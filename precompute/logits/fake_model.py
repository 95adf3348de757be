"""A stand-in for a source: distributions that follow from the token ids alone, with no weights to load.

It takes the same pipeline as a real model (trunk, head over position blocks, top-k), so that pipelines are tried with
nothing but a tokenizer. What it says is noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WIDTH = 16
_SEED = 20


def fake_model(
    vocab_size: int, device: torch.device, delay: float = 0.0
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """Trunk (ids int64 [B, T] -> float32 [B, T, 16]) and head (float32 [N, 16] -> [N, V]), equal in every process.

    The distribution at a position depends on its token and, half as much, on the one before it. Each batch takes
    `delay` seconds more.
    """
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    embedding, output = (torch.randn(vocab_size, _WIDTH, generator=generator).to(device) for _ in range(2))

    def trunk(ids: torch.Tensor) -> torch.Tensor:
        time.sleep(delay)
        hidden = embedding[ids]
        return hidden + 0.5 * torch.nn.functional.pad(hidden[:, :-1], (0, 0, 1, 0))

    def head(hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ output.T

    return trunk, head
