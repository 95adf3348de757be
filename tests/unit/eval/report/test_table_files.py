"""The report's tables as CSV: what the page shows, for pandas and spreadsheets, and no formulas."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionx.eval.report.pages import ReportInputs, csv_text, write_report
from fusionx.eval.report.tables.cells import Cell, Table


def test_tables_are_files_for_programs(make_inputs: Callable[..., ReportInputs], tmp_path: Path) -> None:
    inputs, folder = make_inputs(bootstrap=200), tmp_path / "first"
    write_report(inputs, folder)
    results = json.loads((folder / "results.json").read_text())
    with (folder / "tables" / "report" / "overview-1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Method"] for row in rows] == [method["label"] for method in results["methods"].values()]
    shown = [float(row["Corpus domains, bits/byte"]) for row in rows]
    exact = [method["mean"]["best"]["groups"]["corpus"]["bits_per_byte"] for method in results["methods"].values()]
    assert shown == pytest.approx(exact, abs=5e-5)
    assert rows[-1]["Corpus domains, bits/byte (detail)"].startswith("±")
    names = {path.name for path in (folder / "tables" / "report").iterdir()}
    again = tmp_path / "again" / "tables" / "report"
    again.mkdir(parents=True)
    (again / "gone.csv").write_text("of a report with another section")
    (again / "mine.txt").write_text("mine")
    write_report(inputs, again.parent.parent)
    assert {path.name for path in again.iterdir()} == names | {"mine.txt"}
    text = (folder / "report.md").read_text()
    assert {f"tables/report/{name}" for name in names} == set(re.findall(r"\]\((tables/[^)]+)\)", text))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("@SUM(1)", "'@SUM(1)"),
        ("+cmd|x", "'+cmd|x"),
        ("-cmd", "'-cmd"),
        ("-1.5 %", "-1.5 %"),
        ("\u22121.5 % (\u22122 to +1)", "-1.5 % (-2 to +1)"),
        ("a \u2212 b", "a \u2212 b"),
        ("\u2013", ""),
        ("+.5", "+.5"),
        ('a "b", c', 'a "b", c'),
        ("two\nlines", "two\nlines"),
        ("\x1b[31m", "\ufffd[31m"),
    ],
)
def test_no_cell_is_a_formula_of_a_spreadsheet(text: str, written: str) -> None:
    table = Table("", ["Name", "Value"], [[Cell("a"), Cell("1", text)], [Cell(text), Cell("2")]])
    lines = list(csv.reader(io.StringIO(csv_text(table))))
    assert lines == [["Name", "Value", "Value (detail)"], ["a", "1", written], [written, "2", ""]]
