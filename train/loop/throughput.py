"""How fast a training goes, and how near that is to what its devices can do."""

from __future__ import annotations

import math
import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

TIMED_FIELDS = ("tokens_per_s", "waiting_for_data", "mfu", "peak_memory_gb")
"""What `Throughput.since_last` gives: all that differs between two logs of the same training."""

_PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 990.0,
    "H200": 989.0,
    "H100": 989.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A30": 165.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "4090": 165.0,
    "3090": 71.0,
    "MI300X": 1307.0,
    "MI250X": 383.0,
}
"""bf16 matrix products with fp32 accumulation, dense, from the makers' data sheets."""
_H100_VARIANTS = {"PCIe": 756.0, "NVL": 835.0}


class Throughput:
    """Tokens, waiting and pauses since the last look.

    Args:
        flops_per_token: see `flops_per_token`. devices: how many train together, each like `device`.
    """

    def __init__(self, flops_per_token: float, device: torch.device, devices: int = 1) -> None:
        self._flops_per_token = flops_per_token
        self._device = device
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak = None if peak is None else peak * devices
        self._restart()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what fetches the next batch."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: validation, exports, checkpoints."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._started += time.monotonic() - started

    def add(self, tokens: int) -> None:
        """After a step; `tokens` of all devices."""
        self._tokens += tokens

    def since_last(self) -> dict[str, float | None]:
        """Starts afresh.

        tokens_per_s: of all devices. waiting_for_data: share of the time, on this one. mfu: model FLOPs over the bf16
        peak of the devices, None where that is not known. peak_memory_gb: on this device, or of this process's
        memory on a CPU, so far.
        """
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self._tokens / seconds
        found = {
            "tokens_per_s": round(rate, 1),
            "waiting_for_data": round(self._waited / seconds, 4),
            "mfu": None if self._peak is None else round(rate * self._flops_per_token / self._peak, 4),
            "peak_memory_gb": round(_peak_memory(self._device) / 1e9, 3),
        }
        self._restart()
        return found

    def _restart(self) -> None:
        self._started, self._waited, self._tokens = time.monotonic(), 0.0, 0


def flops_per_token(model: Any, length: float) -> float:
    """FLOPs of a training step per token: 6 N + 12 layers x width x length (PaLM, arXiv 2204.02311, appendix B).

    N counts the parameters that are multiplied with: all but the embeddings, and the head even where it is tied to one.
    Of the 6, 2 are the forward pass, 2 its gradients by activations, 2 those by parameters, which frozen ones need not.
    Recomputation does not count. Experts of a mixture count as if all were used, so that the MFU is too high there.

    Args:
        model: a causal language model of transformers. length: of the rows it reads, in tokens.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = id(model.get_output_embeddings().weight)
    flops = 0
    for parameter in model.parameters():
        if id(parameter) not in embeddings or id(parameter) == head:
            flops += _size(parameter) * (6 if parameter.requires_grad else 4)
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", 0)  # Mamba has none
    head_size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return flops + 12 * config.num_hidden_layers * heads * head_size * length


def peak_flops(device_name: str) -> float | None:
    """FLOP/s of a GPU by the name that CUDA gives it; None where it is not in the table."""
    words = re.split(r"[^0-9A-Za-z]+", device_name)
    known = next((word for word in words if word in _PEAK_TFLOPS), None)
    if known is None:
        return None
    variant = next((_H100_VARIANTS[word] for word in words if word in _H100_VARIANTS), None)
    return 1e12 * (variant if known == "H100" and variant else _PEAK_TFLOPS[known])


def _size(parameter: nn.Parameter) -> int:
    packed = getattr(parameter, "quant_state", None)  # two 4-bit weights lie in one byte
    return parameter.numel() if packed is None else math.prod(packed.shape)


def _peak_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
