"""Shows a chunk to a person in a terminal, as lines whose pieces say what they are; colours are the command line's."""

from __future__ import annotations

from collections.abc import Iterator

from fusionx.align.walk.explained_lines import Line
from fusionx.contract.files.escaping import visible
from fusionx.pipelines.inspection.chunk_view import ChunkView, Entry, Opinion, Position, Said

_WIDEST_TEXT = 600
"""Characters of the chunk that are printed."""
HOW = {
    "not_aligned": "not aligned",
    "exact_boundary": "boundaries agree",
    "mined_match": "matched by edit costs",
    "inside_token": "inside a source token",
    "nothing_compatible": "inside a source token, nothing else compatible",
}
LEGEND = (
    "At each token of the target: what comes next, and of each candidate how probable its aligned shard makes that, "
    "what it weighs in the teacher, and its distribution before (own tokens) and after alignment (the target's)."
)


def chunk_lines(view: ChunkView) -> Iterator[Line]:
    """The chunk's facts and text, then a block for every position."""
    yield [(title(view), "own")]
    for fact in facts(view):
        yield [(fact, "leaving")]
    yield []
    text = visible(view.text)
    shortened = f"\n… {len(text) - _WIDEST_TEXT:,} more characters" if len(text) > _WIDEST_TEXT else ""
    for line in (text[:_WIDEST_TEXT] + shortened).splitlines():
        yield [(f"  {line}", "plain")]
    yield []
    yield [(LEGEND, "leaving")]
    width = max((len(one.candidate) for place in view.positions for one in place.opinions), default=0)
    for place in view.positions:
        yield []
        yield from _block(place, width)
    yield []
    yield [(span_said(view), "leaving")]


def span_said(view: ChunkView) -> str:
    """Which positions are shown, of how many."""
    if not view.positions:
        return f"None of {view.predicted} positions with a next token is shown: --positions A:B says which."
    first, last = view.positions[0].index, view.positions[-1].index
    return f"Positions {first} to {last} of 0 to {view.predicted - 1}; --positions A:B shows others."


def percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 or share == 0 else "<0.1%"


def title(view: ChunkView) -> str:
    return f"Document {view.doc_id}, chunk {view.chunk}"


def facts(view: ChunkView) -> list[str]:
    """Where it lies, what it is, and whose weights are shown."""
    domain = visible(view.domain).replace("\n", " ")
    gate = view.note if view.method is None else f"weights in the teacher of {view.method}, seed {view.seed}"
    return [
        f"{view.part}, row {view.row}; split {view.split}; domain {domain}; {view.predicted + 1} tokens of the target",
        f"alignment {view.alignment}; {gate}",
    ]


def _block(place: Position, width: int) -> Iterator[Line]:
    yield [(f"{place.index:>5}  {place.token} -> ", "plain"), (place.label, "label")]
    for one in place.opinions:
        label = "" if one.aligned is None else "not stored" if one.label is None else percent(one.label)
        weight = "" if one.weight is None else f"weight {one.weight:.2f}  "
        yield [
            (f"       {one.candidate:<{width}}  ", "own"),
            (f"{label:>6}  ", "label"),
            (weight, "filled"),
            (how(one), "leaving" if one.aligned is None else "plain"),
        ]
        if one.said is not None:
            yield [("         said     ", "leaving"), *_entries(one.said, one.own_next)]
        if one.aligned is not None:
            yield [("         aligned  ", "leaving"), *_entries(one.aligned, label=place.label_id)]


def how(one: Opinion) -> str:
    """How its position meets the target's."""
    if one.read is None:
        return f"{HOW[one.status]}: it has read no token yet"
    return HOW[one.status] if one.agrees else f"{HOW[one.status]}, after {one.read}"


def _entries(said: Said, own_next: Entry | None = None, label: int = -1) -> Line:
    """The next token stands out; where it is not among the entries shown and its probability is known, it follows."""
    token = label if own_next is None else own_next.id
    line: Line = []
    for entry in said.entries:
        line.append((f"{entry.token} {percent(entry.probability)}  ", "label" if entry.id == token else "plain"))
    if own_next is not None and all(entry.id != token for entry in said.entries):
        line.append((f"… {own_next.token} {percent(own_next.probability)}  ", "label"))
    if said.more:
        line.append((f"(other entries {percent(said.more)})  ", "leaving"))
    return [*line, (f"(tail {percent(said.tail)})", "tail")]
