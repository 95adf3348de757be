"""The dtype in which a CPU computes a model: as it is stored where the processor multiplies that by itself, else fp32.

Statistics are fp32 either way (`precompute.logits.top_k`).
"""

from __future__ import annotations

import sys
from typing import Any

from fusionx.contract.cpu_dtypes import INSTRUCTIONS, instruction_for


def in_fast_dtype(name: str, loaded: Any) -> Any:
    """A model on the CPU, in fp32 if its own dtype is slow here; says which it is and why. `name`: for the message."""
    stored = str(loaded.dtype).removeprefix("torch.")
    if stored not in INSTRUCTIONS:
        return loaded
    found = instruction_for(stored, cpu_capabilities())
    why = f"this CPU has {found}" if found else f"this CPU has none of {', '.join(INSTRUCTIONS[stored])}"
    used = stored if found else "float32"
    print(f"[precompute/{name}] stored in {stored}, computed in {used}: {why}", file=sys.stderr, flush=True)
    return loaded if found else loaded.float()


def cpu_capabilities() -> dict[str, Any]:
    import torch

    return dict(torch.cpu.get_capabilities())
