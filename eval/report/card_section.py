"""The evaluation's part of a trained model's card: what it gained and lost against the original target."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fusionx.eval.report.inputs import TARGET, Step
from fusionx.eval.report.pages import markdown_table
from fusionx.eval.report.tables.cells import Cell, Table, percent
from fusionx.eval.report.tables.units import interval_text, score_cell, score_text
from fusionx.eval.report.verdict import signed_percent
from fusionx.eval.results.interference import METHOD_NOTE
from fusionx.eval.results.task_scores import score_interval

HEADING = "## Evaluation"
_SECTION = re.compile(rf"^{HEADING}$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_GROUPS = {"corpus": "Domains of the corpus", "absent": "Domains absent from it", "all": "All domains"}


def with_evaluation(card: str, section: str) -> str:
    """The card with `section` as its evaluation: in place of the one that it has, else at its end."""
    if _SECTION.search(card):
        return _SECTION.sub(lambda _: section + "\n", card).rstrip() + "\n"
    return f"{card.rstrip()}\n\n{section}"


def evaluation_section(results: Mapping[str, Any], method: str, seed: int, step: Step) -> str:
    """Markdown of one exported model, from the report's numbers (`summary.summarize`); ends with a new line."""
    own = results["methods"][method]["per_seed"][str(seed)][step]
    start = results["methods"][TARGET]["mean"][step]
    counts = results["interference"][method][step]["per_seed"][str(seed)]
    units = f"{counts['degraded']} of {counts['units']} domains and tasks are worse than the original target's"
    lines = [
        HEADING,
        "",
        f"On held-out text and tasks. {units}, {counts['degraded_beyond_noise']} of them beyond noise.",
        "",
        *markdown_table(_groups(own, start)),
        "",
        *markdown_table(_units(own, start, results["tasks"])),
        "",
        f"In brackets the change: relative for bits per byte, in points for a share of right answers, and "
        f"its 95 % interval over the items. {METHOD_NOTE}",
    ]
    return "\n".join(lines) + "\n"


def _groups(own: Mapping[str, Any], start: Mapping[str, Any]) -> Table:
    header = ["", "bits per byte, original", "this model", "perplexity, original", "this model"]
    rows = []
    for group, title in _GROUPS.items():
        before, after = start["groups"][group], own["groups"][group]
        if before is not None:
            texts = [f"{of[name]:.{digits}f}" for name, digits in (("bits_per_byte", 4), ("perplexity", 2))
                     for of in (before, after)]  # fmt: skip
            rows.append([Cell(title), *map(Cell, texts)])
    return Table("", header, rows)


def _units(own: Mapping[str, Any], start: Mapping[str, Any], tasks: Mapping[str, Any]) -> Table:
    """Every domain and task, the largest loss first."""
    units = []
    for name, figures in own["domains"].items():
        before, after = start["domains"][name]["bits_per_byte"], figures["bits_per_byte"]
        loss = after / before - 1 if before else 0.0
        units.append((loss, [Cell(name), Cell(f"{before:.4f}"), Cell(f"{after:.4f}", signed_percent(loss))]))
    for name, after in own["tasks"].items():
        before, about = start["tasks"][name], tasks["tasks"][name]
        if about["share"]:
            points = f"{100 * (after - before):+.1f}".replace("-", "−")
            interval = interval_text(score_interval(after, None, about), share=True)
            first = score_cell(tasks["models"][TARGET]["tasks"][name])
            units.append((before - after, [Cell(name), first, Cell(percent(after), f"{points}; {interval}")]))
        else:
            sign = 1 if about["higher_is_better"] else -1
            loss = sign * (before - after) / abs(before) if before else 0.0
            texts = [score_text(score, share=False) for score in (before, after)]
            units.append((loss, [Cell(name, about["metric"]), *map(Cell, texts)]))
    rows = [row for _, row in sorted(units, key=lambda unit: -unit[0])]
    return Table("", ["Domain (bits per byte) or task (right)", "original target", "this model"], rows)
