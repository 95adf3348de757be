"""The methods beside what a user would do instead: a source as it is, training on, an ensemble, a merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusionx.eval.config import MERGE_ROW
from fusionx.eval.report.inputs import TARGET, method_label
from fusionx.eval.report.summary import SUBJECT, claim_group
from fusionx.eval.report.tables.cells import MISSING, Cell, Section, Table
from fusionx.eval.report.tables.sources import ENSEMBLE_LABELS
from fusionx.eval.report.tables.units import short_interval
from fusionx.eval.report.verdict import signed_percent

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class BestEnsemble:
    """The best of the ensembles that look at no answer. models: how many it runs for every token.

    against_subject: relative difference in bits per byte over `group`, below zero where the ensemble is better.
    """

    label: str
    models: int
    group: str
    figures: Figures
    against_subject: float | None


def best_ensemble(results: Mapping[str, Any]) -> BestEnsemble | None:
    found = results["ensembles"]
    if found is None:
        return None
    group = claim_group(results["domains"]["corpus"])
    name = _best({name: found["ensembles"][name] for name in ENSEMBLE_LABELS}, group)
    figures = found["ensembles"][name]
    subject = found["models"].get(SUBJECT)
    against = None if subject is None else _bits(figures, group) / _bits(subject, group) - 1
    return BestEnsemble(ENSEMBLE_LABELS[name], len(found["candidates"]), group, figures, against)


def alternatives(results: Mapping[str, Any]) -> Section | None:
    found, ensemble = results["ensembles"], best_ensemble(results)
    if found is None or ensemble is None:
        return None
    split, group, models = found["split"], ensemble.group, found["models"]
    rows = [(Cell(method_label(name), "trained" if name != TARGET else "as it is"), 1, models[name])
            for name in models if name in results["methods"]]  # fmt: skip
    sources = {name: of for name, of in found["candidates"].items() if name != results["target"]}
    if sources:
        best = _best(sources, group)
        rows.append((Cell(best, "the best source alone"), 1, sources[best]))
    rows.append((Cell(ensemble.label, "the best ensemble"), ensemble.models, ensemble.figures))
    merged = {name: of for name, of in models.items() if name.startswith(MERGE_ROW)}
    if merged:
        best = _best(merged, group)
        rows.append((Cell(best, "the best merge"), 1, merged[best]))
    groups = [name for name in ("corpus", "absent", "all") if results["domains"][name]]
    lowest = {name: min(_bits(figures, name) for _, _, figures in rows) for name in groups}
    cells = [
        [
            first,
            *(_cell(figures, name, _bits(figures, name) == lowest[name]) for name in groups),
            Cell(f"{count}"),
        ]
        for first, count, figures in sorted(rows, key=lambda row: _bits(row[2], group))
    ]
    titles = {"corpus": "Corpus domains, bits/byte", "absent": "Absent domains, bits/byte", "all": "All, bits/byte"}
    table = Table(
        f"What else could be done with the same models and text, {split} split, best first",
        ["Model", *(titles[name] for name in groups), "Models run per token"],
        cells,
        emphasis=method_label(SUBJECT),
    )
    notes = [
        "Bits per byte of held-out text; fewer is better. Below each figure: its change against the original target, "
        f"and the {results['judging']['confidence'] * 100:g}\u00a0% interval of that over documents. Intervals over "
        "documents say nothing of how much another seed would change; overlapping ones show no difference.",
        "A source and an ensemble are scored through the aligned shards, in the target's tokens. An ensemble keeps all "
        "its models and runs each of them for every token; a trained target runs alone.",
    ]
    if not merged:
        notes[1] += " No merge was asked for (eval.merges), or no source has the target's architecture."
    return Section("instead", "Beside what you would do instead", notes, [table])


def _bits(figures: Figures, group: str) -> float:
    return float(figures["groups"][group]["bits_per_byte"])


def _best(of: Mapping[str, Figures], group: str) -> str:
    return min(of, key=lambda name: _bits(of[name], group))


def _cell(figures: Figures, group: str, best: bool) -> Cell:
    change = figures["change"][group]
    if change is None:
        return Cell(MISSING, tone="muted")
    detail = signed_percent(change["mean"])
    if change["interval"] is not None:
        detail += f" ({short_interval(change['interval'])})"
    # The target itself has no change.
    return Cell(f"{_bits(figures, group):.4f}", detail if change["mean"] else "", "best" if best else "")
