"""How kernels are compiled: to machine code by numba, kept on disk between processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import config, njit, types

_UNCOUNTED: dict[str, Any] = {"_nrt": False, "error_model": "numpy", "nogil": True}


def compiled(function: Callable[..., Any]) -> Any:
    """`function` as machine code, compiled at its first call; with NUMBA_DISABLE_JIT=1 as it is, for a debugger.

    The code is kept beside the source, or under `NUMBA_CACHE_DIR` or the user's cache folder; where none of them is
    writable, every process compiles anew. A kernel calls compiled functions of its own folder only: a change of any
    file there makes its code be compiled anew.
    """
    return _compiled(function, {})


def uncounted(function: Callable[..., Any]) -> Any:
    """As `compiled`, without reference counts and Python's lock: the function may not make arrays, which come from
    outside.

    numba counts references to every array of every tuple at every call, atomically; small functions over many arrays
    take ten times as long for it.
    """
    return _compiled(function, _UNCOUNTED)


def inlined(function: Callable[..., Any]) -> Any:
    """For what `uncounted` functions call: they take its code in, as numba would hand over every array of every tuple,
    some kilobytes.

    Its code is kept with theirs. Whole numbers come as int64, other than uint64: otherwise numba compiles it anew for
    every mixture of literals, int32 and uint32 that it meets, half a minute for all of the walk.
    """
    return _inlined(function, {})


def fused(function: Callable[..., Any]) -> Any:
    """As `inlined`; products may be added without being rounded before, which is twice as fast in a polynomial."""
    return _inlined(function, {"fastmath": {"contract"}})


def _inlined(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return _plain(function)
    made = njit(**_UNCOUNTED, forceinline=True, **options)(function)
    template_of = made.get_call_template
    made.get_call_template = lambda args, kws: template_of(tuple(map(_widened, args)), kws)
    return made


def _widened(kind: types.Type) -> types.Type:
    return types.int64 if isinstance(kind, types.Integer) and kind != types.uint64 else kind


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return _plain(function)
    try:
        made = njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder to keep it in
        return njit(**options)(function)
    # numba itself looks at the function's own file only.
    made._cache._cache_file._source_stamp = _stamp(Path(inspect.getfile(function)).parent)
    return made


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return np.errstate(over="ignore")(function)  # as machine code does


def _stamp(folder: Path) -> tuple[tuple[str, float, int], ...]:
    files = [(file.name, file.stat()) for file in sorted(folder.glob("*.py"))]
    return tuple((name, found.st_mtime, found.st_size) for name, found in files)
