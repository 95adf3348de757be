"""Shows an explained walk to a person, as lines whose pieces say what they are; colours are the command line's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from fusionx.align.positions import Status
from fusionx.align.walk.explain import OF_TAIL, OwnPath, WalkedPosition

Role = Literal["plain", "label", "own", "leaving", "filled", "tail"]
"""What a piece of a line tells of: the next token, its own path, what leaves, what the target filled in, the tail."""
Line = list[tuple[str, Role]]

_MOST_MOVEMENTS = 6
_LEAST_MASS = 0.01
_NAMED_TARGETS = 2
_NOT_SHOWN = 5e-4
"""Less than 0.1 % when rounded."""
_WIDEST = 36
"""Of a column; a longer cell runs over."""
_HOW = {
    Status.NOT_ALIGNED: "not aligned: the source says nothing here",
    Status.EXACT_BOUNDARY: "boundaries agree",
    Status.INSIDE_TOKEN: "inside a source token",
    Status.NOTHING_COMPATIBLE: "inside a source token that nothing else is compatible with",
}
_LEGEND = (
    "A block for each next token of the target: how probable {source} makes it and how probable the target itself,",
    "and how the two tokenizations meet there. Then where the probability goes: tokens that {source} may write ->",
    "tokens of the target; first those of the text, with exact probabilities. | is where the target stands in a token.",
)


class _Row(NamedTuple):
    """One line of a block, in pieces: what is said of whom, and why."""

    role: Role
    mass: float
    source: str
    targets: list[tuple[str, bool]]
    """Pieces, and which of them is the next token."""
    why: str

    @property
    def width(self) -> int:
        return sum(len(text) for text, _ in self.targets)


def walk_lines(positions: Sequence[WalkedPosition], source: str, target: str) -> list[Line]:
    """The positions as a person reads them, with an empty line between; `source` and `target` are the models' names."""
    heads = [("#", "text so far", "next token", source, target, "alignment"), *map(_head, positions)]
    blocks = [list(_rows_of(position)) for position in positions]
    head_widths = [max(map(len, column)) for column in zip(*heads, strict=True)]
    rows = [row for block in blocks for row in block]
    sizes = ((len(row.source) for row in rows), (row.width for row in rows))
    widths = [min(_WIDEST, max(column, default=0)) for column in sizes]
    lines: list[Line] = [[(line.format(source=source), "leaving")] for line in _LEGEND]
    lines += [[], _head_line(heads[0], head_widths, "plain")]
    for head, block in zip(heads[1:], blocks, strict=True):
        lines += [_head_line(head, head_widths, "label"), *(_line(row, widths) for row in block), []]
    return lines[:-1]


def _head(position: WalkedPosition) -> tuple[str, ...]:
    probability, how = "-" if position.own is None else _percent(position.probability), _HOW[position.status]
    if position.status == Status.NOT_ALIGNED and not position.before:
        how += " (it has read no token yet)"
    return (
        str(position.index),
        position.before,
        position.label,
        probability,
        _percent(position.target_probability),
        how,
    )


def _head_line(cells: tuple[str, ...], widths: list[int], role: Role) -> Line:
    number, before, label, said, own, how = cells
    return [
        (f"{number:>{widths[0]}}  {before:>{widths[1]}}  ", "plain"),
        (f"{label:<{widths[2]}}", role),
        (f"  {said:>{widths[3]}}", "plain" if role == "plain" else "own"),
        (f"  {own:>{widths[4]}}  {how}", "plain"),
    ]


def _rows_of(position: WalkedPosition) -> Iterator[_Row]:
    if position.own is None:
        return
    yield _Row("own", position.own.mass, position.own.source, [(position.label, True)], _path(position.own))
    shown_movements = [move for move in position.movements[:_MOST_MOVEMENTS] if move.mass >= _LEAST_MASS]
    for movement in shown_movements:
        several = len(movement.targets) > 1
        why = ["begun earlier"] if movement.earlier and movement.source else []
        if not movement.source:
            why.append("filled in by the target itself")
        elif movement.source == OF_TAIL:
            why.append("as much of it as tokens begin so")
        elif several:
            why.append("undecided: divided by the target itself")
        yield _Row(
            "filled" if several or not movement.source else "leaving",
            movement.mass,
            movement.source or "(no more said)",
            _targets(movement.targets, position.label),
            ", ".join(why),
        )
    rest = position.movements[len(shown_movements) :]
    mass = sum(movement.mass for movement in rest)
    if mass >= _NOT_SHOWN:
        yield _Row("leaving", mass, f"({len(rest)} more)", [], "")
    for tail, reason in ((position.unsaid, "beyond what is stored"), (position.cut, "too small to be kept")):
        if tail >= _NOT_SHOWN:
            yield _Row("tail", tail, "(tail)", [], reason)


def _path(own: OwnPath) -> str:
    parts = [f"{_percent(own.begun)} begun"] if own.earlier else []
    parts += [_percent(prob) for prob in own.probs]
    why = "the text itself: " + " x ".join(parts)
    if not own.earlier and own.begun > 1 + _LEAST_MASS:
        why += f" / {_percent(1 / own.begun)} (longer tokens left before)"
    if own.stays < 1 - _LEAST_MASS:
        why += f" x {_percent(own.stays)} (longer tokens leave)"
    return why


def _targets(targets: list[tuple[str, float]], label: str) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = []
    for token, mass in targets[:_NAMED_TARGETS]:
        pieces += [(", ", False)] if pieces else []
        pieces += [(token, token == label)]
        pieces += [(f" {_percent(mass)}", False)] if len(targets) > 1 else []
    unnamed = len(targets) - _NAMED_TARGETS
    return [*pieces, (f" and {unnamed} more", False)] if unnamed > 0 else pieces


def _line(row: _Row, widths: list[int]) -> Line:
    arrow = "->" if row.targets else "  "
    line: Line = [(f"    {_percent(row.mass):>6}  {row.source:<{widths[0]}}  {arrow}  ", row.role)]
    line += [(text, "label" if is_label else row.role) for text, is_label in row.targets]
    if row.why:
        return [*line, (" " * max(widths[1] - row.width, 0) + "  " + row.why, row.role)]
    return line if row.targets else [(line[0][0].rstrip(), row.role)]


def _percent(share: float) -> str:
    return f"{share:.1%}"
