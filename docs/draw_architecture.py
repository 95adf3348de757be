"""Draws docs/architecture.svg from the tree itself: floors, packages, rooms and modules. `make docs` runs it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (
    ("cli",),
    ("benchmarks",),
    ("pipelines",),
    ("precompute", "align", "train", "eval"),
    ("contract",),
)
"""From the top down, as pyproject.toml's import contracts have them."""
SAYS = {
    "cli": "what a person calls",
    "benchmarks": "what we measure",
    "pipelines": "puts the stages together",
    "precompute": "corpus → top-k shards",
    "align": "into the target's tokens",
    "train": "target + selection network",
    "eval": "quality, interference, report",
    "contract": "all that the stages share",
}
WIDTH, GAP, LINE, CHAR = 1240, 12, 15, 6.3
COLUMNS = 4
COLUMN = (WIDTH - (COLUMNS + 1) * GAP) / COLUMNS


def rooms_of(package: str) -> list[tuple[str, list[str]]]:
    """A package's own modules under "", then each room's, without `__init__`; rooms without modules are left out."""
    folder = ROOT / package
    rooms = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    found = []
    for room in rooms:
        modules = sorted(path.stem for path in room.glob("*.py") if path.stem != "__init__")
        if modules:
            found.append((room.relative_to(folder).as_posix() if room != folder else "", modules))
    return found


class Room:
    """A box with a room's name and its modules, as wide as a column."""

    def __init__(self, name: str, modules: Sequence[str], width: float) -> None:
        self.name, self.width = name, width
        self.lines = textwrap.wrap(", ".join(modules), int((width - 2 * GAP) / CHAR), break_long_words=False)
        self.height = LINE * (len(self.lines) + bool(name)) + GAP

    def draw(self, x: float, y: float) -> list[str]:
        shape = f'<rect class="room" x="{x:.0f}" y="{y:.0f}" width="{self.width:.0f}" height="{self.height:.0f}"/>'
        drawn, top = [shape], y + LINE
        if self.name:
            drawn.append(_text(x + 8, top, f"{self.name}/", "name"))
            top += LINE
        return drawn + [_text(x + 8, top + LINE * number, line) for number, line in enumerate(self.lines)]


class Package:
    """A package's box, its rooms dealt onto `columns`, always to the shortest."""

    def __init__(self, name: str, columns: int) -> None:
        self.name = name
        self.width = columns * COLUMN + (columns - 1) * GAP
        inner = (self.width - (columns + 1) * GAP) / columns
        self._placed: list[tuple[Room, float, float]] = []
        heights = [2.0 * LINE + GAP] * columns
        for room, modules in rooms_of(name):
            box = Room(room, modules, inner)
            column = heights.index(min(heights))
            self._placed.append((box, GAP + column * (inner + GAP), heights[column]))
            heights[column] += box.height + 6
        self.height = max(heights) + 4

    def draw(self, x: float, y: float, height: float) -> list[str]:
        drawn = [
            f'<rect class="package" x="{x:.0f}" y="{y:.0f}" width="{self.width:.0f}" height="{height:.0f}" rx="6"/>',
            _text(x + GAP, y + 20, f"{self.name}/", "title"),
            _text(x + GAP, y + 20 + LINE, SAYS[self.name], "says"),
        ]
        for room, left, top in self._placed:
            drawn += room.draw(x + left, y + top)
        return drawn


def _text(x: float, y: float, words: str, kind: str = "modules") -> str:
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{escape(words)}</text>'


def picture() -> str:
    """The SVG; the same tree gives the same text."""
    drawn: list[str] = []
    y: float = GAP
    for floor in FLOORS:
        packages = [Package(name, COLUMNS // len(floor)) for name in floor]
        height = max(package.height for package in packages)
        x: float = GAP
        for package in packages:
            drawn += package.draw(x, y, height)
            x += package.width + GAP
        y += height + GAP
    style = (
        "text{font-family:system-ui,sans-serif;fill:#1a1a2e}.title{font-size:16px;font-weight:700}"
        ".says{font-size:12px;fill:#555}.name{font-size:12px;font-weight:700}.modules{font-size:11.5px}"
        ".package{fill:#eef2f8;stroke:#8aa0c0}.room{fill:#fff;stroke:#c5d0e0}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" role="img">'
        "<title>Fusion-X: its floors from the command line down to the data contract, with every package's rooms"
        f'</title><style>{style}</style><rect width="{WIDTH}" height="{y:.0f}" fill="#fff"/>'
    )
    return "\n".join([head, *drawn, "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs" / "architecture.svg").write_text(picture(), encoding="utf-8")
