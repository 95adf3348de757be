"""Which model to take, in words: for the report, the terminal and the model's own card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fusionx.contract.files.escaping import markdown_text
from fusionx.eval.report.inputs import TARGET, method_label
from fusionx.eval.report.verdict import signed_percent

_TEXTS = {"corpus": "validation text of the corpus's domains", "all": "validation text"}
HEADING = "## Why this model"
_SECTION = re.compile(rf"^{HEADING}$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def advice(results: Mapping[str, Any]) -> list[str]:
    """Sentences: which model, why, and what a source alone would be; nothing where none is recommended."""
    found = results["recommendation"]
    if found is None:
        return []
    return [f"{_take(found)}, {found['folder']}: {_why(results)}", _source(found)]


def with_reason(card: str, results: Mapping[str, Any]) -> str:
    """The card with the reason as its first section, in place of one that it has."""
    found = results["recommendation"]
    text = _why(results)
    reason = markdown_text(f"{text[0].upper()}{text[1:]} {_source(found)}")
    section = f"{HEADING}\n\n{reason}\n\n"
    if _SECTION.search(card):
        return _SECTION.sub(lambda _: section, card)
    before, mark, after = card.partition("\n## ")
    return (
        f"{before.rstrip()}\n\n{section.rstrip()}\n{mark}{after}"
        if mark
        else f"{before.rstrip()}\n\n{section.rstrip()}\n"
    )


def _take(found: Mapping[str, Any]) -> str:
    if found["kind"] == TARGET:
        return "Take the original target, unchanged"
    several = len(found["all"]["methods"][found["name"]]["per_seed"]) > 1
    return f"Take the model of {method_label(found['name'])}" + (f", seed {found['seed']}" if several else "")


def _why(results: Mapping[str, Any]) -> str:
    found = results["recommendation"]
    where = f"on {_TEXTS[found['claim']]}"
    bits, other = found["bits_per_byte"], found["runner_up"]
    if found["kind"] == TARGET:
        return (
            f"{where} no training made it better: it has {bits:.4f} bits per byte, and the best of the trained "
            f"methods, {method_label(other['name'])}, {other['bits_per_byte']:.4f}."
        )
    change = found["vs_target"]
    interval = change["interval"]
    text = (
        f"{where} it has {bits:.4f} bits per byte, {signed_percent(change['mean'])} against the original target"
        f"{_interval_text(found, interval)}"
    )
    if interval is not None and interval[1] >= 0:
        text += ", so no gain is shown"
    if other["name"] != found["name"] and other["kind"] != TARGET:
        text += f"; the next best method, {method_label(other['name'])}, has {other['bits_per_byte']:.4f}"
    return text + "."


def _source(found: Mapping[str, Any]) -> str:
    best = found["best_source"]
    if best is None:
        return "How the sources themselves do on that text is not known: they were not run over it."
    change = best["vs_model"]
    said = f"{signed_percent(change['mean'])} against it{_interval_text(found, change['interval'])}"
    if change["mean"] < 0:
        return (
            f"On that text the source {best['name']} alone is better still: {best['bits_per_byte']:.4f} bits per byte, "
            f"{said}. Who can use that model as it is should."
        )
    return f"The best source alone, {best['name']}, has {best['bits_per_byte']:.4f} bits per byte there, {said}."


def _interval_text(found: Mapping[str, Any], interval: list[float] | None) -> str:
    if interval is None:
        return " (too few documents for an interval)"
    level = f"{found['confidence'] * 100:g}\u00a0%"
    return f" ({level} interval over documents {signed_percent(interval[0])} to {signed_percent(interval[1])})"
