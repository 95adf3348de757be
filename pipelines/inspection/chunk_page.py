"""Shows a chunk as one HTML page that needs nothing else: no script, nothing fetched, all that is data escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusionx.contract.files.escaping import visible
from fusionx.contract.files.storage import write_bytes
from fusionx.pipelines.inspection.chunk_lines import LEGEND, facts, how, percent, span_said, title
from fusionx.pipelines.inspection.chunk_view import ChunkView, Entry, Opinion, Position, Said

TEMPLATES = Path(__file__).parent / "templates"


def write_chunk_page(view: ChunkView, file: str | Path) -> None:
    """
    Raises:
        DataError: it cannot be written.
    """
    write_bytes(file, chunk_page(view).encode())


def chunk_page(view: ChunkView) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # not what is markup already
    )
    return environment.get_template("chunk.html.j2").render(
        title=title(view),
        facts=facts(view),
        legend=LEGEND,
        span=span_said(view),
        text=view.text,
        pieces=[_piece(place) for place in view.positions],
        positions=[_position(place) for place in view.positions],
    )


def _piece(place: Position) -> dict[str, Any]:
    """A next token as it stands in the text. shade: 0 to 3, the less the first candidate shown expected it."""
    expected = next((one.label for one in place.opinions if one.label is not None), None)
    shade = 0 if expected is None else sum(expected < limit for limit in (0.5, 0.1, 0.01))
    text = place.text or "\u2205"
    # White space alone is nothing that a screen reader says.
    return {"index": place.index, "text": text, "shade": shade, "blank": not text.strip(), "label": place.label}


def _position(place: Position) -> dict[str, Any]:
    return {
        "index": place.index,
        "token": place.token,
        "label": place.label,
        "opinions": [_opinion(one, place.label_id) for one in place.opinions],
    }


def _opinion(one: Opinion, label: int) -> dict[str, Any]:
    return {
        "candidate": one.candidate,
        "how": how(one),
        "label": None if one.aligned is None else "not stored" if one.label is None else percent(one.label),
        "weight": one.weight,
        "said": None if one.said is None else _rows(one.said, one.own_next),
        "aligned": None if one.aligned is None else _rows(one.aligned, label=label),
    }


def _rows(said: Said, own_next: Entry | None = None, label: int = -1) -> list[dict[str, Any]]:
    token = label if own_next is None else own_next.id
    rows = [_row(entry.token, entry.probability, entry.id == token) for entry in said.entries]
    if own_next is not None and all(entry.id != token for entry in said.entries):
        rows.append(_row(own_next.token, own_next.probability, True))
    if said.more:
        rows.append(_row("other entries", said.more, False, quiet=True))
    return [*rows, _row("tail", said.tail, False, quiet=True)]


def _row(token: str, probability: float, is_next: bool, quiet: bool = False) -> dict[str, Any]:
    return {
        "token": token,
        "percent": percent(probability),
        "width": f"{100 * min(probability, 1):.1f}",
        "next": is_next,
        "quiet": quiet,
    }
