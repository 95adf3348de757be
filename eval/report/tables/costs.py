"""What the run took: the search for the learning rate, and every stage's time and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusionx.eval.report.inputs import method_label
from fusionx.eval.report.tables.cells import MISSING, Cell, Section, Table, bytes_text, duration_text


def tuning(results: Mapping[str, Any]) -> Section | None:
    if not results["tuning"]:
        return None
    best = {
        method: min(row["best_bits_per_byte"] for row in results["tuning"] if row["method"] == method)
        for method in dict.fromkeys(row["method"] for row in results["tuning"])
    }
    rows = [
        [
            Cell(method_label(row["method"])),
            Cell(f"{row['learning_rate']:g}"),
            Cell(
                f"{row['best_bits_per_byte']:.4f}",
                tone="best" if row["best_bits_per_byte"] == best[row["method"]] else "",
            ),
            Cell(f"{row['last_bits_per_byte']:.4f}"),
            Cell(f"{row['best_step']:,}"),
        ]
        for row in results["tuning"]
    ]
    notes = [
        "A method uses the learning rate that is best for it, with the first seed, on validation text of the corpus's "
        "own domains; a method without a row here uses the one that is best for continual training, the baseline."
    ]
    header = ["Method", "Learning rate", "Best step, bits/byte", "Last step, bits/byte", "Best step"]
    caption = "Every rate on validation text"
    return Section("tuning", "Learning-rate search", notes, [Table(caption, header, rows)], behind=True)


def stages(results: Mapping[str, Any]) -> Section | None:
    if not results["stages"]:
        return None
    rows = []
    for stage, found in results["stages"].items():
        seconds, tokens = found.get("seconds"), found.get("tokens")
        rate = f"{tokens / seconds:,.0f}" if tokens and seconds else MISSING
        counts = [
            f"{found[key]:,.0f}" if found.get(key) is not None else MISSING for key in ("parts", "rows", "tokens")
        ]
        cells = [duration_text(seconds), *counts, rate, bytes_text(found.get("bytes"))]
        rows.append([Cell(stage), *map(Cell, cells)])
    header = ["Stage", "Time", "Parts", "Rows", "Tokens", "Tokens/s", "Size"]
    tables = [Table("What the run took", header, rows)]
    return Section("stages", "Time and size of the stages", [], tables, behind=True)
