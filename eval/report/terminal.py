"""What `fusionx eval` and `fusionx report` print: a report's tables and sentences for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusionx.contract.files.escaping import visible
from fusionx.eval.report.pages import markdown_cells
from fusionx.eval.report.recommendation import advice
from fusionx.eval.report.tables.cells import Table
from fusionx.eval.report.tables.methods import overview


def summary_text(results: Mapping[str, Any]) -> str:
    """The verdict's first sentence, the methods at their best step, and which model to take."""
    table, *_ = overview(results).tables
    return visible("\n\n".join([results["verdict"][0], "\n".join(padded(table)), *advice(results)]))


def padded(table: Table) -> list[str]:
    """Lines of a Markdown table; the first column to the left, numbers to the right."""
    rows = markdown_cells(table)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for position, row in enumerate(rows):
        fill = "-" if position == 1 else " "
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1], fill), *(text.rjust(width, fill) for text, width in others)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
