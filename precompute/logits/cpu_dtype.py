"""The dtype in which a CPU computes a model: as it is stored where the processor multiplies that by itself, else fp32.

Without the instructions, half-precision products are emulated, thirty times slower than fp32; with them, bfloat16 is
twice as fast. Statistics are fp32 either way (`precompute.logits.top_k`).
"""

from __future__ import annotations

import sys
from typing import Any

_INSTRUCTIONS = {"bfloat16": ("amx_bf16", "avx512_bf16", "bf16"), "float16": ("amx_fp16", "avx512_fp16", "fp16")}
"""As `torch.cpu.get_capabilities` names them; the last of each is ARM's."""


def in_fast_dtype(name: str, loaded: Any) -> Any:
    """A model on the CPU, in fp32 if its own dtype is slow here; says which it is and why. `name`: for the message."""
    stored = str(loaded.dtype).removeprefix("torch.")
    if stored not in _INSTRUCTIONS:
        return loaded
    found = [word for word in _INSTRUCTIONS[stored] if cpu_capabilities().get(word)]
    why = f"this CPU has {found[0]}" if found else f"this CPU has none of {', '.join(_INSTRUCTIONS[stored])}"
    used = stored if found else "float32"
    print(f"[precompute/{name}] stored in {stored}, computed in {used}: {why}", file=sys.stderr, flush=True)
    return loaded if found else loaded.float()


def cpu_capabilities() -> dict[str, Any]:
    import torch

    return dict(torch.cpu.get_capabilities())
