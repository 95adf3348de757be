"""The verdict in words, made from the numbers alone: it says that fusion wins, loses, or that nothing is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusionx.eval.report.inputs import TARGET, method_label
from fusionx.eval.report.summary import ONE_SEED, SUBJECT

NAME = method_label(SUBJECT)
IN_SENTENCE = {"ct": "continual training", "fusellm": "FuseLLM", "paper": "the paper preset"}
PLACES = {
    "corpus": "on the corpus's domains",
    "absent": "on domains absent from it",
    "all": "over all held-out domains",
}
THOSE_OF = "those of continual training"
NOTHING = 5e-4
"""Relative differences below 0.05 % are called equal: they vanish in the rounding of the tables."""


def verdict(results: Mapping[str, Any]) -> list[str]:
    """Sentences for a reader who reads nothing else; the first one carries the answer."""
    comparison = results["comparison"]
    if comparison is None:
        return [f"This run has no {NAME} model, so there is nothing to judge; the tables show what was trained."]
    sentences = [_headline(comparison), *_against_baselines(comparison)]
    sentences += [*_domains(results, comparison), *_interference(comparison), *_last_step(comparison)]
    if comparison["seeds"] == 1:
        sentences.append(ONE_SEED)
    return sentences


def _headline(comparison: Mapping[str, Any]) -> str:
    """The claim, judged where the best step is chosen: on the corpus's domains; what became of the others follows."""
    claim = comparison["claim"]
    if comparison["bpb_vs_ct"] is None:
        change = comparison["vs_target"]["best"][claim]["mean"]
        return (
            f"{NAME} was trained without its baseline: {PLACES[claim]}, its bits per byte are "
            f"{_relative(change, 'those of the original target')}, but without continual training on the same data "
            "nothing says how much of that is fusion's."
        )
    against_ct = comparison["bpb_vs_ct"]["best"]
    change, interval = against_ct[claim]["mean"], against_ct[claim]["ci95"]
    if abs(change) < NOTHING:
        opening = f"{NAME} and plain continual training are equal"
    elif interval is not None and interval[0] <= 0 <= interval[1]:
        opening = f"No difference between {NAME} and plain continual training is shown"
    elif interval is None:  # one seed shows no win
        opening = f"{NAME} is {'ahead of' if change < 0 else 'behind'} plain continual training"
    elif change < 0:
        opening = f"{NAME} beats plain continual training"
    else:
        opening = f"{NAME} loses to plain continual training"
    if interval is None:
        opening += " in this one pair of runs"
    sentence = (
        f"{opening}: with each at its own best step, its bits per byte {PLACES[claim]} are "
        f"{_relative(change, THOSE_OF if abs(change) < NOTHING else '')}{_interval_text(against_ct[claim])}"
    )
    absent = against_ct["absent"]
    if claim == "corpus" and absent is not None:
        away = _relative(absent["mean"], THOSE_OF if abs(absent["mean"]) < NOTHING else "")
        sentence += f"; {PLACES['absent']} they are {away}{_interval_text(absent)}"
    return sentence + "."


def _against_baselines(comparison: Mapping[str, Any]) -> list[str]:
    """Against all other methods than continual training, which the headline has."""
    claim = comparison["claim"]
    parts = []
    for key, found in comparison.items():
        method = key.removeprefix("bpb_vs_")
        if key != method != "ct" and found is not None:
            found = found["best"][claim]
            name = f"{IN_SENTENCE.get(method, method_label(method))}'s"
            parts.append(f"{_relative(found['mean'], name)}{_interval_text(found)}")
    if not parts:
        return []
    listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    return [f"{PLACES[claim].capitalize()} {NAME}'s bits per byte are {listed}."]


def _domains(results: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[str]:
    sentences = []
    to_target = comparison["vs_target"]["best"]
    for group in ("corpus", "absent"):
        if to_target[group] is None:
            continue
        sentence = (
            f"{PLACES[group].capitalize()}, against the original target, {NAME} {_moved(to_target[group]['mean'])}"
        )
        for baseline in ("ct", "fusellm"):
            if baseline in results["methods"]:
                change = _group_change(results, baseline, group)
                sentence += f"; {IN_SENTENCE[baseline]} {_moved(change)}"
        sentences.append(sentence + ".")
    if comparison["claim"] == "corpus":
        sentences.append("The best step is chosen on validation text of the corpus's domains only.")
    return sentences


def _group_change(results: Mapping[str, Any], method: str, group: str) -> float:
    start = results["methods"][TARGET]["mean"]["best"]["groups"][group]["bits_per_byte"]
    return float(results["methods"][method]["mean"]["best"]["groups"][group]["bits_per_byte"] / start - 1)


def _interference(comparison: Mapping[str, Any]) -> list[str]:
    counts = {method: found["best"]["vs_target"] for method, found in comparison["degraded"].items()}
    units = counts[SUBJECT]["units"]
    sentence = (
        f"Of {number(units)} domains and skills, {number(counts[SUBJECT]['raw'])} got worse than the original target "
        f"under {NAME} ({number(counts[SUBJECT]['beyond_noise'])} beyond noise)"
    )
    for baseline in ("ct", "fusellm", "paper"):
        if baseline in counts:
            raw, beyond = counts[baseline]["raw"], counts[baseline]["beyond_noise"]
            sentence += f"; {number(raw)} ({number(beyond)}) under {IN_SENTENCE[baseline]}"
    return [sentence + "."]


def _last_step(comparison: Mapping[str, Any]) -> list[str]:
    if comparison["bpb_vs_ct"] is None:
        return []
    last = comparison["bpb_vs_ct"]["last"]
    parts = [
        f"{signed_percent(last[group]['mean'])} {PLACES[group]}{_interval_text(last[group])}"
        for group in dict.fromkeys([comparison["claim"], "absent"])
        if last[group] is not None
    ]
    return [
        "At the last step, without early stopping, bits per byte against continual training: "
        + " and ".join(parts)
        + "."
    ]


def _relative(change: float, other: str = "") -> str:
    """ "3.1 % lower" or "equal", with what it is compared to where that is not said already."""
    if abs(change) < NOTHING:
        return f"equal to {other}" if other else "equal"
    return f"{abs(change) * 100:.1f}\u00a0% {'lower' if change < 0 else 'higher'}" + (f" than {other}" if other else "")


def _moved(change: float) -> str:
    if abs(change) < NOTHING:
        return "is unchanged"
    return f"{'improves' if change < 0 else 'worsens'} by {abs(change) * 100:.1f}\u00a0%"


def sureness(found: Mapping[str, Any]) -> str:
    """The interval of a difference: over seeds, or of one seed that over documents, which knows of no other seed."""
    if found["ci95"] is not None:
        return f"95\u00a0% interval over seeds {_range(found['ci95'])}"
    if found.get("documents") is not None:
        return f"one seed; interval over documents {_range(found['documents'])}"
    return "one seed, no interval"


def _interval_text(found: Mapping[str, Any]) -> str:
    return f" ({sureness(found)})" if found["ci95"] is not None or found.get("documents") is not None else ""


def _range(interval: Sequence[float]) -> str:
    return f"{signed_percent(interval[0])} to {signed_percent(interval[1])}"


def signed_percent(value: float, digits: int = 1) -> str:
    """A share as a signed percentage, with a true minus sign and a no-break space."""
    return f"{value * 100:+.{digits}f}\u00a0%".replace("-", "−")


def number(value: float) -> str:
    """A count: whole if it is, else (a mean over seeds) with one digit."""
    return f"{value:.0f}" if abs(value - round(value)) < 1e-9 else f"{value:.1f}"
