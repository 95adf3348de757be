"""What a reader asks first, each answered by one figure and a few lines: the cards at the top of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusionx.eval.report.inputs import TARGET, method_label
from fusionx.eval.report.summary import SUBJECT
from fusionx.eval.report.tables.alternatives import best_ensemble
from fusionx.eval.report.tables.cells import bytes_text, count_text, duration_text
from fusionx.eval.report.tables.losses import losses_of
from fusionx.eval.report.tables.units import change_text
from fusionx.eval.report.verdict import IN_SENTENCE, PLACES, number, signed_percent, sureness

_SHOWN_LOSSES = 3


@dataclass(frozen=True)
class Card:
    """One answer: `value` in large, what it is, and what to know beside it."""

    question: str
    value: str
    label: str
    details: list[str] = field(default_factory=list)


def cards(results: Mapping[str, Any]) -> list[Card]:
    """Did it help, where did it hurt, what did it cost, which model to take: those that the run can answer."""
    found = (_helped(results), _hurt(results), _cost(results), _take(results))
    return [card for card in found if card is not None]


def _helped(results: Mapping[str, Any]) -> Card | None:
    comparison = results["comparison"]
    if comparison is None:
        return None
    claim = comparison["claim"]
    change = comparison["vs_target"]["best"][claim]
    details = [sureness(change)]
    for baseline in ("ct", "fusellm"):
        found = comparison[f"bpb_vs_{baseline}"]
        if found is not None:
            of = found["best"][claim]
            details.append(f"{signed_percent(of['mean'])} against {IN_SENTENCE[baseline]} ({sureness(of)})")
    details += _absent(results, helped=True)
    label = f"bits per byte of held-out text {PLACES[claim]}, against the original target; fewer is better"
    return Card("Did it help?", signed_percent(change["mean"]), label, details)


def _hurt(results: Mapping[str, Any]) -> Card | None:
    """The worst losses first; what the others lose for comparison."""
    if results["comparison"] is None:
        return None
    counts = {method: of["best"]["vs_target"] for method, of in results["comparison"]["degraded"].items()}
    own = counts[SUBJECT]
    worse = losses_of(results, SUBJECT)
    details = [
        f"{unit['name']} {change_text(unit)}, {'beyond' if beyond else 'within'} noise"
        for unit, beyond in worse[:_SHOWN_LOSSES]
    ]
    details += _absent(results, helped=False)
    others = [
        f"{number(counts[method]['raw'])} ({number(counts[method]['beyond_noise'])}) under {IN_SENTENCE[method]}"
        for method in ("ct", "fusellm")
        if method in counts
    ]
    if others:
        details.append("worse (beyond noise): " + ", ".join(others))
    label = f"domains and skills worse than the original target, {number(own['beyond_noise'])} of them beyond noise"
    return Card("Where did it hurt?", f"{number(own['raw'])} of {number(own['units'])}", label, details)


def _absent(results: Mapping[str, Any], helped: bool) -> list[str]:
    """What became of the domains that the corpus has not: said where it belongs."""
    found = results["comparison"]["vs_target"]["best"]["absent"]
    if found is None or (found["mean"] < 0) != helped:
        return []
    return [f"{signed_percent(found['mean'])} {PLACES['absent']}, together ({sureness(found)})"]


def _cost(results: Mapping[str, Any]) -> Card | None:
    seconds = {stage: of["seconds"] for stage, of in results["stages"].items() if of.get("seconds") is not None}
    if not seconds:
        return None
    longest = sorted(seconds, key=lambda stage: -seconds[stage])
    trainings = sum(len(method["seeds"]) for name, method in results["methods"].items() if name != TARGET)
    of_all = f" ({trainings} training{'s' if trainings != 1 else ''})"
    details = [f"{stage}{of_all if stage == 'train' else ''} {duration_text(seconds[stage])}" for stage in longest]
    size = sum(of.get("bytes") or 0 for of in results["stages"].values())
    if size:
        details.append(f"{bytes_text(size)} of shards")
    own = next((source["parameters"] for source in results["sources"] if source["id"] == results["target"]), None)
    if own is not None:
        details.append(f"afterwards: a model of the target's own size ({count_text(own)} parameters), run alone")
    return Card("What did it cost?", duration_text(sum(seconds.values())), "of work, all stages together", details)


def _take(results: Mapping[str, Any]) -> Card | None:
    found = results["recommendation"]
    if found is None:
        return None
    change, source = found["vs_target"], found["best_source"]
    details = ["the fewest bits per byte on validation text of target and methods"]
    if change is not None:
        details[0] += f", {signed_percent(change['mean'])} against the original target{_interval(change['interval'])}"
    if source is not None and source["vs_model"]["mean"] < 0:
        than = f"{signed_percent(source['vs_model']['mean'])}{_interval(source['vs_model']['interval'])}"
        details.append(f"the source {source['name']} alone is better still: {than}")
    ensemble = best_ensemble(results)
    if ensemble is not None and ensemble.against_subject is not None and ensemble.against_subject < 0:
        details.append(
            f"lower still, but by running all {ensemble.models} candidates for every token ({ensemble.label}): "
            f"{signed_percent(ensemble.against_subject)} against {method_label(SUBJECT)} {PLACES[ensemble.group]}"
        )
    name = "The original target" if found["kind"] == TARGET else method_label(found["name"])
    return Card("Which model do I take?", name, found["folder"], details)


def _interval(interval: list[float] | None) -> str:
    if interval is None:
        return ""
    return f" (95\u00a0% over documents: {signed_percent(interval[0])} to {signed_percent(interval[1])})"
