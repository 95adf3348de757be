"""What a table is made of: plain cells, without a word on how they look on paper or on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["", "best", "worse", "muted"]
MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a second, smaller text, and what it should look like."""

    text: str
    detail: str = ""
    tone: Tone = ""

    def plain(self) -> str:
        """Both texts in one line."""
        return f"{self.text} ({self.detail})" if self.detail else self.text


@dataclass(frozen=True)
class Table:
    """A table with a caption. The first column names the row; `emphasis` is the row of the method under test.

    folded: shown when asked for. prose: its cells are running text.
    """

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    emphasis: str = ""
    folded: bool = False
    prose: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, what the reader should be warned of and should know, and tables; `key` names its figures, too.

    behind: a detail, which a page opens when asked to.
    """

    key: str
    heading: str
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    behind: bool = False


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{value * 100:.{digits}f} %"


def signed(value: float, digits: int) -> str:
    """With its sign, but none before nothing: never "-0.000"."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def duration_text(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def bytes_text(count: float | None) -> str:
    return MISSING if count is None else _scaled(count, ["B", "kB", "MB", "GB", "TB"])


def count_text(count: int | None) -> str:
    return MISSING if count is None else _scaled(count, ["", "k", "M", "B", "T"])


def _scaled(value: float, units: Sequence[str]) -> str:
    position = 0
    while value >= 999.5 and position < len(units) - 1:
        value, position = value / 1000, position + 1
    digits = 0 if position == 0 or value >= 99.5 else 1
    return f"{value:,.{digits}f} {units[position]}".rstrip()
