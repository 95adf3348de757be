"""How progress looks, wherever something long runs: a bar on a terminal, and the time that is left."""

from __future__ import annotations

import sys

_WIDTH = 20


def bar(share: float) -> str:
    """The bar and a space; nothing where stderr is no terminal."""
    full = round(share * _WIDTH)
    return f"{'#' * full}{'.' * (_WIDTH - full)} " if sys.stderr.isatty() else ""


def clock(seconds: float) -> str:
    """m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
