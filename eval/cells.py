"""What a table is made of: plain cells, without a word on how they look on paper or on a page."""

from __future__ import annotations

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
    """A table with a caption. The first column names the row; `emphasis` is the row of the method under test."""

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    emphasis: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, what the reader should know, and tables; `plots` names the figures that go with it."""

    key: str
    heading: str
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{value * 100:.{digits}f} %"
