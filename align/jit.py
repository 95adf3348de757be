"""How this package compiles its kernels: to machine code by numba, kept on disk between processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import config, njit


def compiled(function: Callable[..., Any]) -> Any:
    """`function` as machine code, compiled at its first call; with NUMBA_DISABLE_JIT=1 as it is, for a debugger.

    The code is kept beside the source, or under `NUMBA_CACHE_DIR` or the user's cache folder; where none of them is
    writable, every process compiles anew. A kernel calls compiled functions of its own folder only: a change of any
    file there makes its code be compiled anew.
    """
    return _compiled(function, {})


def uncounted(function: Callable[..., Any]) -> Any:
    """As `compiled`, without reference counts: the function may not make arrays, which come from outside.

    numba counts references to every array of every tuple at every call, atomically; small functions over many arrays
    take ten times as long for it. It also hands over every array of every tuple, some kilobytes: so whoever calls the
    function takes its code in.
    """
    return _compiled(function, {"_nrt": False, "error_model": "numpy", "forceinline": True})


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return np.errstate(over="ignore")(function)  # as machine code does
    try:
        made = njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder to keep it in
        return njit(**options)(function)
    # numba itself looks at the function's own file only.
    made._cache._cache_file._source_stamp = _stamp(Path(inspect.getfile(function)).parent)
    return made


def _stamp(folder: Path) -> tuple[tuple[str, float, int], ...]:
    files = [(file.name, file.stat()) for file in sorted(folder.glob("*.py"))]
    return tuple((name, found.st_mtime, found.st_size) for name, found in files)
