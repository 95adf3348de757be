"""How parameters are updated: AdamW, the learning rate's schedule, the precision, and each step's random numbers."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from fusionx.train.config import TrainJob


def step_seed(seed: int, step: int, rank: int) -> int:
    """Of one step's random numbers on one process; no two are the same."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest())


def schedule(step: int, steps: int, warmup_ratio: float) -> float:
    """Share of the peak learning rate at `step`: linear warm-up, then a cosine to 0."""
    warmup = max(1, round(warmup_ratio * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def adamw(job: TrainJob, module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    config = job.optimizer
    group = {"params": trained(module), "peak_lr": learning_rate}
    return torch.optim.AdamW(
        [group], lr=learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return torch.bfloat16 if precision == "bf16" else None
