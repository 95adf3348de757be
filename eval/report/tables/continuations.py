"""What the models write, side by side: the likeliest continuation of a few held-out documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusionx.eval.report.inputs import TARGET, method_label
from fusionx.eval.report.summary import SUBJECT
from fusionx.eval.report.tables.cells import MISSING, Cell, Section, Table


def continuations(results: Mapping[str, Any]) -> Section | None:
    if not results["continuations"]:
        return None
    tables = [
        Table(f"From the domain {found['domain']}", ["Who", "What"], _rows(found), method_label(SUBJECT),
              folded=place > 0, prose=True)
        for place, found in enumerate(results["continuations"])
    ]  # fmt: skip
    notes = [
        "The beginning of a held-out document, how it goes on, and what each model thinks likeliest there (greedily, "
        "at most 48 tokens). A few examples show the manner, not the quality: that is what the figures are for."
    ]
    return Section("examples", "What the models write", notes, tables)


def _rows(found: Mapping[str, Any]) -> list[list[Cell]]:
    written = found["written"]
    order = sorted(written, key=lambda name: (name != SUBJECT, name != TARGET))
    told = [("The beginning", found["prompt"]), ("The document itself", found["text"])]
    told += [(method_label(name), written[name]) for name in order]
    return [[Cell(who), Cell(text.strip("\n") or MISSING)] for who, text in told]
