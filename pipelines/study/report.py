"""Writes a study's results: table.md, a CSV per table, results.json, and its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fusionx.contract.files.escaping import markdown_text
from fusionx.contract.files.storage import join, write_bytes
from fusionx.eval.report.pages import csv_text, finite, markdown_table
from fusionx.eval.report.tables.cells import MISSING, Cell, Table
from fusionx.eval.report.verdict import signed_percent
from fusionx.eval.results.over_seeds import INTERVAL_CONFIDENCE
from fusionx.pipelines.study.figures import figures
from fusionx.pipelines.study.results import BASELINES


def write_study(results: Mapping[str, Any], folder: str, writes: bool = True) -> tuple[str, list[str]]:
    """The paths of the table and of the figures.

    Args:
        writes: whether this process writes them; of several, one does.
    """
    drawn = figures(results)
    table = join(folder, "table.md")
    paths = [join(folder, f"{figure.name}.svg") for figure in drawn]
    if writes:
        for path, figure in zip(paths, drawn, strict=True):
            write_bytes(path, (figure.svg + "\n").encode())
        lines = [f"# {results['study']}: {markdown_text(results['title'])}", ""]
        for figure in drawn:
            lines += [f"![{markdown_text(figure.alt)}]({figure.name}.svg)", "", f"*{markdown_text(figure.title)}*", ""]
        for made in tables(results):
            lines += [f"**{markdown_text(made.caption)}**", "", *markdown_table(made), ""]
        lines += [f"- {note}" for note in notes(results)]
        write_bytes(table, ("\n".join(lines) + "\n").encode())
        write_csv(tables(results), folder)
        text = json.dumps(finite(dict(results)), indent=1, ensure_ascii=False, allow_nan=False)
        write_bytes(join(folder, "results.json"), (text + "\n").encode())
    return table, paths


def write_csv(made: Sequence[Table], folder: str) -> None:
    """`table.csv`, or `table-1.csv` and so on, in the order of table.md."""
    for number, table in enumerate(made, 1):
        write_bytes(join(folder, f"table-{number}.csv" if len(made) > 1 else "table.csv"), csv_text(table).encode())


def notes(results: Mapping[str, Any]) -> list[str]:
    """What the reader of the table must know."""
    said = [
        "All figures are of the validation text, as each training logged it: bits per byte, the mean over the domains "
        "that the training text has (“corpus”) or lacks (“absent”). Lower is better. The best step is the one that is "
        "lowest on the corpus's domains.",
        "“Worse” is the share of domains whose bits per byte are above the original target's, at the best step; no "
        "account is taken of noise.",
        "“Chosen” is how many candidates the selection takes at a position, the mean over the training; with "
        "granularity `element`, candidates that are taken for any vocabulary id.",
    ]
    if any(cell["change"] for cell in results["cells"]):
        said.append("“Change” is of the corpus's bits per byte at the best step, paired by seed.")
    seeds = len(results["seeds"])
    said.append(
        f"± is half of the {100 * INTERVAL_CONFIDENCE:g} % confidence interval of the mean over {seeds} seeds (t)."
        if seeds > 1
        else "One seed: nothing here tells a difference from chance."
    )
    if results["figure"] == "efficiency":
        said.append("Between validations the perplexity is taken to fall in a straight line.")
    return said


def tables(results: Mapping[str, Any]) -> list[Table]:
    made = [_scores(results)]
    if results["figure"] == "efficiency":
        made.append(_reached(results))
    if results["figure"] == "selection":
        made.append(_course(results))
    return made


def _scores(results: Mapping[str, Any]) -> Table:
    cells = results["cells"]
    lowest = min((cell["best"]["corpus"]["mean"] for cell in cells if cell["best"]["corpus"]), default=None)
    rows = []
    if results["original"] is not None:
        start = results["original"]
        figures_of = [Cell(_number(start["corpus"])), Cell(MISSING), Cell(_number(start["absent"]))]
        blank = [Cell("")] * (len(results["columns"]) - 1)
        rows.append([Cell("original target"), *blank, *figures_of, *[Cell(MISSING)] * 5])
    for cell in cells:
        corpus = _figure(cell["best"]["corpus"], 4)
        if cell["best"]["corpus"] is None:
            corpus = Cell("failed", tone="worse")
        elif cell["best"]["corpus"]["mean"] == lowest:
            corpus = Cell(corpus.text, tone="best")
        if cell["failed"] and cell["best"]["corpus"] is not None:
            failed = f"{len(cell['failed'])} of {len(results['seeds'])} seeds failed"
            corpus = Cell(corpus.text, failed, "worse")
        rows.append(
            [
                *map(Cell, cell["labels"]),
                corpus,
                _change(cell),
                _figure(cell["best"]["absent"], 4),
                _figure(cell["last"]["corpus"], 4),
                _figure(cell["last"]["absent"], 4),
                _percent(cell["best"]["worse"]),
                _figure(cell["chosen"], 2),
                _figure(cell["best"]["step"], 0),
            ]
        )
    header = [
        *results["columns"],
        "Corpus, best step",
        f"Change{_reference(results)}",
        "Absent, best step",
        "Corpus, last step",
        "Absent, last step",
        "Worse",
        "Chosen",
        "Best step",
    ]
    return Table("Validation text, bits per byte", header, rows)


def _reference(results: Mapping[str, Any]) -> str:
    """What every row is compared with, where that is one row; in `data` it is the baseline of the same place."""
    against = {tuple(cell["against"]) for cell in results["cells"] if cell["against"] is not None}
    if len(against) == 1:
        return f" to {', '.join(next(iter(against)))}"
    return f" to {next(iter(against))[-1]}" if against else ""


def _reached(results: Mapping[str, Any]) -> Table:
    """A row per method; per baseline the steps and tokens to its final perplexity."""
    header, rows = ["Method", "Final perplexity"], []
    for baseline in BASELINES:
        header += [f"Steps to {baseline}'s", "Of its steps", f"Tokens to {baseline}'s"]
    for cell in results["cells"]:
        row = [Cell(cell["labels"][0]), _figure(cell["last"]["perplexity"], 2)]
        for baseline in BASELINES:
            found = cell["reached"][baseline]
            never = f"{found['never']} seeds never" if found["never"] else ""
            steps = _figure(found["steps"], 0)
            row += [Cell(steps.text, never), _percent(found["share"]), _figure(found["tokens"], 0)]
        rows.append(row)
    return Table("How soon each method has the baselines' final perplexity (corpus domains)", header, rows)


def _course(results: Mapping[str, Any]) -> Table:
    """Every candidate's share of the fusion weight, in the first and the last tenth of the training and over all."""
    rows = []
    for cell in results["cells"]:
        for name, shares in cell["course"]["shares"].items():
            tenth = max(1, len(shares) // 10)
            means = [sum(part) / len(part) for part in (shares[:tenth], shares[-tenth:], shares)]
            rows.append([Cell(cell["labels"][0]), Cell(name), *(Cell(f"{100 * mean:.1f} %") for mean in means)])
    header = ["Method", "Candidate", "First tenth", "Last tenth", "Whole training"]
    return Table("Share of the fusion weight", header, rows)


def _change(cell: Mapping[str, Any]) -> Cell:
    if cell["same_as_against"]:
        return Cell("the same")
    if cell["change"] is None:
        return Cell(MISSING, tone="muted")
    return Cell(signed_percent(cell["change"]["mean"], 2) + _half(cell["change"], 2, 100))


def _figure(found: Mapping[str, Any] | None, digits: int) -> Cell:
    if found is None:
        return Cell(MISSING, tone="muted")
    return Cell(f"{found['mean']:,.{digits}f}{_half(found, digits)}")


def _percent(found: Mapping[str, Any] | None) -> Cell:
    if found is None:
        return Cell(MISSING, tone="muted")
    return Cell(f"{100 * found['mean']:.1f} %{_half(found, 1, 100)}")


def _half(found: Mapping[str, Any], digits: int, scale: float = 1) -> str:
    """Half of the confidence interval; nothing for one seed."""
    interval = found["ci95"]
    return "" if interval is None else f" ± {scale * (interval[1] - interval[0]) / 2:,.{digits}f}"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"
