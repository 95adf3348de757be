"""How this package compiles its kernels: to machine code by numba, kept on disk between processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """`function` as machine code, compiled at its first call.

    The code is kept beside the source, or under `NUMBA_CACHE_DIR` or the user's cache folder; where none of them is
    writable, every process compiles anew. numba notices a change of the kernel's own file only, so a kernel calls
    compiled functions of its own file only.
    """
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # numba found no folder to keep it in
        return njit(function)
