"""How parameters are updated: AdamW, the learning rate's schedule, the precision, and each step's random numbers."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from fusionx.contract.cpu_dtypes import instruction_for
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


def autocast_dtype(precision: str, device: torch.device, stored: torch.dtype) -> torch.dtype | None:
    """What products are computed in; None: fp32, as the weights. `stored`: the dtype of the target's folder."""
    if precision == "auto":
        # On a CPU only a model that was made in bf16 changes its last bits for speed, and only where there is any.
        fast = stored == torch.bfloat16 and instruction_for("bfloat16", torch.cpu.get_capabilities())
        precision = "bf16" if device.type == "cuda" or fast else "fp32"
    return torch.bfloat16 if precision == "bf16" else None
