"""Writes the report: results.json, report.md with its plots, and report.html, one file that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionx.contract.files.escaping import markdown_text, visible
from fusionx.contract.files.storage import join, write_bytes
from fusionx.eval.report.figures.canvas import METHOD_COLOURS
from fusionx.eval.report.figures.plots import Plot, plots, with_prefix
from fusionx.eval.report.inputs import MethodRun, ReportInputs, SourceFigures
from fusionx.eval.report.recommendation import advice
from fusionx.eval.report.summary import SUBJECT, summarize
from fusionx.eval.report.tables.cells import Section, Table
from fusionx.eval.report.tables.sections import sections
from fusionx.eval.report.teaching import warnings
from fusionx.eval.report.verdict import number, signed_percent, verdict
from fusionx.eval.results.evaluation import Evaluation

__all__ = ["Evaluation", "MethodRun", "ReportInputs", "SourceFigures", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"


def write_report(inputs: ReportInputs, folder: str | Path) -> dict[str, Any]:
    """Builds the report and writes `results.json`, `report.md`, `plots/*.svg` and `report.html` into `folder`.

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
    parts = sections(results)
    return write_pages(folder, "report", "results", results, parts, figures, key_figures(results))


def write_pages(
    folder: str | Path,
    page: str,
    data: str,
    results: Mapping[str, Any],
    parts: Sequence[Section],
    figures: Sequence[Plot],
    tiles: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Writes `plots/*.svg`, `<page>.md`, `<page>.html` and `<data>.json` into `folder`.

    Args:
        results: what becomes the JSON; its `title`, `warnings` (if any), `verdict`, `command`, `provenance` and
            `config` are on the page.
        tiles: the few numbers at the top of the page, see `key_figures`.

    Returns:
        The content of the JSON file.
    """
    for figure in figures:
        write_bytes(join(folder, "plots", f"{figure.name}.svg"), (figure.svg + "\n").encode())
    write_bytes(join(folder, f"{page}.md"), markdown(results, parts, figures).encode())
    write_bytes(join(folder, f"{page}.html"), html(results, parts, figures, tiles).encode())
    # Last: whoever finds the JSON finds the whole report.
    content: dict[str, Any] = finite(results)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(join(folder, f"{data}.json"), (text + "\n").encode())
    return content


def finite(value: Any) -> Any:
    """JSON has no NaN or infinity; they become null."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(results: Mapping[str, Any], parts: Sequence[Section], figures: Sequence[Plot]) -> str:
    """The report as Markdown; figures are linked from `plots/`."""
    lines = [f"# {markdown_text(results['title'])}", "", *_warned(results.get("warnings", []))]
    verdict, *further = map(markdown_text, results["verdict"])
    lines += [f"**{verdict}**", "", *(f"- {sentence}" for sentence in further), ""]
    for part in parts:
        lines += [f"## {part.heading}", "", *_warned(part.warnings)]
        for note in part.notes:
            lines += [markdown_text(note), ""]
        for figure in (figure for figure in figures if figure.section == part.key):
            alt, title = markdown_text(figure.alt), markdown_text(figure.title)
            lines += [f"![{alt}](plots/{figure.name}.svg)", "", f"*{title}*", ""]
        for table in part.tables:
            lines += [f"**{markdown_text(table.caption)}**", "", *markdown_table(table), ""]
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


def html(
    results: Mapping[str, Any],
    parts: Sequence[Section],
    figures: Sequence[Plot],
    tiles: Sequence[Mapping[str, str]],
) -> str:
    """The report as one HTML file: style and figures inside, nothing fetched."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = {
        part.key: [
            {"title": figure.title, "alt": figure.alt, "svg": with_prefix(figure.svg, figure.name)}
            for figure in figures
            if figure.section == part.key
        ]
        for part in parts
    }
    return environment.get_template("report.html.j2").render(
        results=results,
        warnings=results.get("warnings", []),
        sections=parts,
        figures=drawn,
        tiles=tiles,
        provenance=_flat(results["provenance"]),
        config=_json(results["config"]),
        accent=METHOD_COLOURS[SUBJECT],
    )


def key_figures(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers at the top of the page: value, what it is, and how sure."""
    comparison = results["comparison"]
    if comparison is None:
        return []
    claim = comparison["claim"]
    where = "on the corpus's domains" if claim == "corpus" else "over all domains"
    tiles = []
    for baseline, name in (("ct", "continual training"), ("fusellm", "FuseLLM")):
        found = comparison[f"bpb_vs_{baseline}"]
        if found is not None:
            tiles.append(_tile(f"bits per byte {where} against {name}, each at its best step", found["best"][claim]))
    to_target = comparison["vs_target"]["best"]
    if not tiles:
        tiles.append(_tile(f"bits per byte {where} against the original target", to_target[claim]))
    tiles += _absent_tile(comparison)
    return [*tiles, _degraded_tile(comparison["degraded"])]


def _absent_tile(comparison: Mapping[str, Any]) -> list[dict[str, str]]:
    to_target = comparison["vs_target"]["best"]["absent"]
    if to_target is None:
        return []
    if comparison["bpb_vs_ct"] is None:
        return [_tile("on domains absent from the corpus, against the original target", to_target)]
    tile = _tile(
        "on domains absent from the corpus, against continual training", comparison["bpb_vs_ct"]["best"]["absent"]
    )
    return [{**tile, "detail": f"{tile['detail']}; {signed_percent(to_target['mean'])} against the original target"}]


def _degraded_tile(degraded: Mapping[str, Any]) -> dict[str, str]:
    counts = {method: found["best"]["vs_target"] for method, found in degraded.items()}
    own = counts[SUBJECT]
    others = [
        f"{name} {number(counts[method]['raw'])} ({number(counts[method]['beyond_noise'])})"
        for method, name in (("ct", "continual training"), ("fusellm", "FuseLLM"))
        if method in counts
    ]
    return {
        "value": f"{number(own['raw'])} of {number(own['units'])}",
        "label": "domains and skills worse than the original target",
        "detail": "; ".join([f"{number(own['beyond_noise'])} beyond noise", *others]),
    }


def _tile(label: str, found: Mapping[str, Any]) -> dict[str, str]:
    interval = found["ci95"]
    detail = f"95\u00a0%: {signed_percent(interval[0])} to {signed_percent(interval[1])}" if interval else "one seed"
    return {"value": signed_percent(found["mean"]), "label": label, "detail": detail}
