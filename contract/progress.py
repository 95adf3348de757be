"""How progress looks, wherever something long runs: a bar where a line can be rewritten, and the time that is left."""

from __future__ import annotations

import sys
from typing import Any

_WIDTH = 20


def bar(share: float) -> str:
    """The bar and a space; nothing in a log."""
    full = round(share * _WIDTH)
    return f"{'#' * full}{'.' * (_WIDTH - full)} " if sys.stderr.isatty() or in_notebook() else ""


def clock(seconds: float) -> str:
    """m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def in_notebook() -> bool:
    """Whether stderr is a cell's output, which is no terminal and can be rewritten all the same."""
    return type(sys.stderr).__module__.startswith("ipykernel.")


class CellLine:
    """A line of a notebook's cell that changes."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str) -> None:
        from IPython.display import display

        content = {"text/plain": text}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
