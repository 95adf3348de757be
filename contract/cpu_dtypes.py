"""Which half-precision dtypes a CPU multiplies by itself.

Without the instructions, half-precision products are emulated, thirty times slower than fp32; with them, bfloat16 is up
to twice as fast.
"""

from __future__ import annotations

from collections.abc import Mapping

INSTRUCTIONS = {"bfloat16": ("amx_bf16", "avx512_bf16", "bf16"), "float16": ("amx_fp16", "avx512_fp16", "fp16")}
"""As `torch.cpu.get_capabilities` names them; the last of each is ARM's."""


def instruction_for(dtype: str, capabilities: Mapping[str, object]) -> str | None:
    """The name of what this CPU multiplies `dtype` with; None: it has nothing for it, or `dtype` is no half precision.

    Args:
        capabilities: what `torch.cpu.get_capabilities()` returns.
    """
    return next((name for name in INSTRUCTIONS.get(dtype, ()) if capabilities.get(name)), None)
