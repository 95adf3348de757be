"""Writes the report: results.json, report.md with plots, tables as CSV, and report.html, which needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionx.contract.files.escaping import markdown_text, visible
from fusionx.contract.files.storage import delete, join, list_files, write_bytes
from fusionx.eval.report.answers import Card, cards
from fusionx.eval.report.figures.canvas import DARK, described, themed
from fusionx.eval.report.figures.plots import Plot, plots
from fusionx.eval.report.inputs import MethodRun, ReportInputs, SourceFigures
from fusionx.eval.report.recommendation import advice
from fusionx.eval.report.summary import summarize
from fusionx.eval.report.tables.cells import MISSING, Section, Table
from fusionx.eval.report.tables.sections import sections
from fusionx.eval.report.teaching import warnings
from fusionx.eval.report.verdict import verdict
from fusionx.eval.results.evaluation import Evaluation

__all__ = ["Evaluation", "MethodRun", "ReportInputs", "SourceFigures", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"


def write_report(inputs: ReportInputs, folder: str | Path) -> dict[str, Any]:
    """Builds the report and writes all files of `write_pages`, `report.md` and the others, into `folder`.

    Returns:
        The content of results.json: what `eval.report.summary.summarize` gives, the inputs' `recommendation`, and
        sentences in `verdict` and `warnings`.

    Raises:
        DataError: evaluations are of different data and cannot be compared.
    """
    results = {**summarize(inputs), "recommendation": inputs.recommendation}
    headline, *others = verdict(results)
    results["verdict"], results["warnings"] = [headline, *advice(results), *others], warnings(results)
    figures = plots(inputs, results)
    return write_pages(folder, "report", "results", results, sections(results), figures, cards(results))


def write_pages(
    folder: str | Path,
    page: str,
    data: str,
    results: Mapping[str, Any],
    parts: Sequence[Section],
    figures: Sequence[Plot],
    answers: Sequence[Card],
) -> dict[str, Any]:
    """Writes `plots/*.svg`, `tables/<page>/*.csv`, `<page>.md`, `<page>.html` and `<data>.json` into `folder`.

    Args:
        results: what becomes the JSON; its `title`, `verdict`, `command`, `provenance` and `config` are on the page.
        answers: what stands at the top of the page.

    Returns:
        The content of the JSON file.
    """
    figures = [replace(of, svg=described(of.svg, of.name, of.title, of.alt)) for of in figures]
    for figure in figures:
        write_bytes(join(folder, "plots", f"{figure.name}.svg"), (figure.svg + "\n").encode())
    tables, beside = dict(named_tables(parts)), join(folder, "tables", page)
    for name in set(list_files(beside)) - set(tables):  # of a report with other sections
        if name.endswith(".csv"):
            delete(join(beside, name))
    for name, table in tables.items():
        write_bytes(join(beside, name), csv_text(table).encode())
    write_bytes(join(folder, f"{page}.md"), markdown(page, results, parts, figures, answers).encode())
    write_bytes(join(folder, f"{page}.html"), html(results, parts, figures, answers).encode())
    # Last: whoever finds the JSON finds the whole report.
    content: dict[str, Any] = finite(results)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(join(folder, f"{data}.json"), (text + "\n").encode())
    return content


def named_tables(parts: Sequence[Section]) -> list[tuple[str, Table]]:
    """Every table with the name of its CSV file: the section's key, numbered where a section has several."""
    return [
        (f"{part.key}-{number}.csv" if len(part.tables) > 1 else f"{part.key}.csv", table)
        for part in parts
        for number, table in enumerate(part.tables, 1)
    ]


def csv_text(table: Table) -> str:
    """The table for a spreadsheet or pandas: a cell's smaller text in a column of its own, where a column has any."""
    detailed = [any(row[column].detail for row in table.rows) for column in range(len(table.header))]
    lines = [
        [
            text
            for name, more in zip(table.header, detailed, strict=True)
            for text in (name, f"{name} (detail)")[: 1 + more]
        ]
    ]
    for row in table.rows:
        lines.append(
            [text for cell, more in zip(row, detailed, strict=True) for text in (cell.text, cell.detail)[: 1 + more]]
        )
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([[_csv_cell(text) for text in line] for line in lines])
    return written.getvalue()


def _csv_cell(text: str) -> str:
    """As programs read it: no dash for nothing, a minus that they know, and what a spreadsheet would run as a formula
    becomes text."""
    text = re.sub(r"\u2212(?=[\d.])", "-", visible(text)) if text != MISSING else ""
    return f"'{text}" if re.match(r"[=@\t\r]|[+-](?![\d.])", text) else text


def finite(value: Any) -> Any:
    """JSON has no NaN or infinity; they become null."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(
    page: str, results: Mapping[str, Any], parts: Sequence[Section], figures: Sequence[Plot], answers: Sequence[Card]
) -> str:
    """The report as Markdown; figures are linked from `plots/`, tables for programs from `tables/<page>/`."""
    files = {id(table): name for name, table in named_tables(parts)}
    verdict, *further = map(markdown_text, results["verdict"])
    lines = [f"# {markdown_text(results['title'])}", "", f"**{verdict}**", ""]
    for card in answers:
        told = "; ".join(map(markdown_text, card.details))
        value = f"**{markdown_text(card.value)}** {markdown_text(card.label)}"
        lines.append(f"- {markdown_text(card.question)} {value}" + (f": {told}" if told else ""))
    if results.get("warnings"):
        lines += ["", f"> **Warning** {_pointer(results)}"]
    lines += ["", *(line for sentence in further for line in (sentence, ""))]
    for part in parts:
        lines += [f"## {part.heading}", "", *_warned(part.warnings)]
        for note in part.notes:
            lines += [markdown_text(note), ""]
        for figure in (figure for figure in figures if figure.section == part.key):
            alt, title = markdown_text(figure.alt), markdown_text(figure.title)
            lines += [f"![{alt}](plots/{figure.name}.svg)", "", f"*{title}*", ""]
        for table in part.tables:
            link = f"[CSV](tables/{page}/{files[id(table)]})"
            lines += [f"**{markdown_text(table.caption)}** ({link})", "", *markdown_table(table), ""]
    lines += [
        "## How to reproduce",
        "",
        f"```\n{_fenced(results['command'])}\n```",
        "",
        *_provenance_lines(results),
        "",
    ]
    lines += ["Resolved config:", "", "```json", _fenced(_json(results["config"])), "```", ""]
    return "\n".join(lines)


def _pointer(results: Mapping[str, Any]) -> str:
    """To the warnings, which stand where they can be followed up."""
    count = len(results["warnings"])
    return f"{count} remark{'s' if count > 1 else ''} on sources that know this text worse than the target"


def _fenced(text: str) -> str:
    """Nothing in it ends the block that it stands in."""
    return visible(text).replace("```", "\u02cb\u02cb\u02cb")


def _warned(sentences: Sequence[str]) -> list[str]:
    """A quoted block, which stands out from the text; nothing of nothing."""
    return (
        ["> **Warning**", ">", *(f"> - {markdown_text(sentence)}" for sentence in sentences), ""] if sentences else []
    )


def markdown_table(table: Table) -> list[str]:
    """Its lines."""
    return ["| " + " | ".join(row) + " |" for row in markdown_cells(table)]


def markdown_cells(table: Table) -> list[list[str]]:
    """Its header, the rule below it, and its rows."""
    rows = [[_markdown_cell(cell.plain(), cell.tone) for cell in row] for row in table.rows]
    header = [_markdown_cell(text) for text in table.header]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [header, rule, *rows]


def _markdown_cell(text: str, tone: str = "") -> str:
    text = markdown_text(text)
    return f"**{text}**" if tone == "best" else f"{text} ▲" if tone == "worse" else text


def _provenance_lines(results: Mapping[str, Any]) -> list[str]:
    return [f"- {markdown_text(f'{name}: {value}')}" for name, value in _flat(results["provenance"])]


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            pairs += _flat(item, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", item if isinstance(item, str) else json.dumps(item, default=str)))
    return pairs


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def html(results: Mapping[str, Any], parts: Sequence[Section], figures: Sequence[Plot], answers: Sequence[Card]) -> str:
    """The report as one HTML file: style and figures inside, nothing fetched."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # not what is markup already
    )
    files = {id(table): name for name, table in named_tables(parts)}

    def download(table: Table) -> dict[str, str]:
        """Name and address of the table as CSV, inside the page: it may be sent without the folder."""
        encoded = base64.b64encode(csv_text(table).encode()).decode()
        return {"name": files[id(table)], "href": f"data:text/csv;charset=utf-8;base64,{encoded}"}

    drawn = {
        part.key: [{"title": of.title, "svg": themed(of.svg)} for of in figures if of.section == part.key]
        for part in parts
    }
    return environment.get_template("report.html.j2").render(
        results=results,
        sections=parts,
        figures=drawn,
        download=download,
        answers=answers,
        pointer=_pointer(results) if results.get("warnings") else "",
        provenance=_flat(results["provenance"]),
        config=_json(results["config"]),
        dark=DARK,
    )
