"""What got worse, the worst first: every domain and skill in which the method under test lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusionx.eval.report.inputs import TARGET, method_label
from fusionx.eval.report.summary import SUBJECT
from fusionx.eval.report.tables.cells import Cell, Section, Table
from fusionx.eval.report.tables.units import baseline_cell, change_text, relative_interval, unit_cell

Loss = tuple[Mapping[str, Any], bool]
"""A unit that got worse, and whether chance does not explain it."""


def losses_of(results: Mapping[str, Any], method: str) -> list[Loss]:
    """Units that are worse than under the original target at the method's best step, the largest loss first."""
    units = results["interference"][method]["best"]["units"]
    worse = sorted((unit for unit in units if unit["loss"] > 0), key=lambda unit: (-unit["loss"], unit["name"]))
    return [(unit, unit["degraded_beyond_noise_seeds"] * 2 >= unit["seeds"]) for unit in worse]


def losses(results: Mapping[str, Any]) -> Section | None:
    methods = list(results["interference"])
    if not methods:
        return None
    subject = SUBJECT if SUBJECT in methods else methods[-1]
    name = method_label(subject)
    others = [method for method in methods if method != subject]
    by_method = {
        method: {(unit["kind"], unit["name"]): unit for unit in results["interference"][method]["best"]["units"]}
        for method in methods
    }
    rows = []
    for unit, beyond in losses_of(results, subject):
        key = unit["kind"], unit["name"]
        noise = "beyond noise" if beyond else "within noise"
        rows.append(
            [
                Cell(unit["name"], "absent" if unit["absent"] else "skill" if unit["kind"] == "task" else ""),
                Cell(change_text(unit), "; ".join(filter(None, [relative_interval(unit), noise])),
                     "worse" if beyond else ""),
                baseline_cell(unit),
                unit_cell(unit),
                *(unit_cell(by_method[method][key]) for method in others),
            ]
        )  # fmt: skip
    notes = [
        f"Everything in which {name} at its best step is worse than the original target, the worst first, and what the "
        "other methods make of it; below a figure its change. “Absent” domains are not in the corpus: what is lost "
        "there is forgotten knowledge."
        if rows
        else f"{name} at its best step is worse than the original target in no domain and no skill."
    ]
    header = ["Domain or skill", f"Change under {name}", method_label(TARGET), name, *map(method_label, others)]
    tables = [Table(f"What got worse under {name}, the worst first", header, rows)] if rows else []
    return Section("losses", "Where it hurt", notes, tables)
