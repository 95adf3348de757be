"""Counts torch operations and refuses those that make the host wait for a device: a GPU's work, seen on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_consecutive", "_unique2"}
"""They give the host a value or a shape that only the device knows (`.item()`, `.tolist()`, `if tensor:`, masks)."""
_VIEWS = {"_unsafe_view", "alias", "detach", "expand", "select", "slice", "split", "t", "transpose", "unflatten"}
_VIEWS |= {"unsqueeze", "squeeze", "view", "chunk", "split_with_sizes", "permute", "lift_fresh"}


class Operations(TorchDispatchMode):
    """`launched`: the names of the operations that compute something, in order; views are free.

    Copies to the host are seen on a GPU only; `torch.cuda.set_sync_debug_mode` finds those.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in _WAITING, f"{name} waits for the device"
        if name in ("index", "index_put_"):
            assert all(each is None or each.dtype != torch.bool for each in args[1]), f"{name} by a mask waits"
        self.launched += [] if name in _VIEWS else [name]
        return func(*args, **(kwargs or {}))
