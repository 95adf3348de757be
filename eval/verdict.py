"""The verdict in words, made from the numbers alone: it says that fusion wins, loses, or that nothing is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.report_inputs import TARGET, method_label
from eval.summary import ONE_SEED, SUBJECT

NAME = method_label(SUBJECT)
IN_SENTENCE = {"ct": "continual training", "fusellm": "FuseLLM", "paper": "the paper preset"}
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
    against_ct = comparison["bpb_vs_ct"]
    if against_ct is None:
        change = comparison["vs_target"]["best"]["all"]["mean"]
        return (
            f"{NAME} was trained without its baseline: averaged over the held-out domains its bits per byte are "
            f"{_relative(change, 'those of the original target')}, but without continual training on the same data "
            "nothing says how much of that is fusion's."
        )
    change, interval = against_ct["mean"], against_ct["ci95"]
    if abs(change) < NOTHING:
        opening = f"{NAME} and plain continual training are equal"
    elif interval is not None and interval[0] <= 0 <= interval[1]:
        opening = f"No difference between {NAME} and plain continual training is shown"
    elif change < 0:
        opening = f"{NAME} beats plain continual training"
    else:
        opening = f"{NAME} loses to plain continual training"
    if interval is None:
        opening += " in this one pair of runs" if against_ct["seeds"] == 1 else ""
    return (
        f"{opening}: with each at its own best step, its bits per byte over all held-out domains are "
        f"{_relative(change)}{_interval_text(interval)}."
    )


def _against_baselines(comparison: Mapping[str, Any]) -> list[str]:
    parts = []
    for baseline, name in (("fusellm", "FuseLLM's"), ("paper", "the paper preset's")):
        found = comparison[f"bpb_vs_{baseline}"]
        if found is not None:
            parts.append(f"{_relative(found['mean'], name)}{_interval_text(found['ci95'])}")
    return [f"They are {' and '.join(parts)}."] if parts else []


def _domains(results: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[str]:
    sentences = []
    to_target = comparison["vs_target"]["best"]
    for group, words in (("train", "the domains of the continual corpus"), ("absent", "domains absent from it")):
        if to_target[group] is None:
            continue
        sentence = f"On {words}, {NAME} {_moved(to_target[group]['mean'])} against the original target"
        for baseline in ("ct", "fusellm"):
            if baseline in results["methods"]:
                change = _group_change(results, baseline, group)
                sentence += f"; {IN_SENTENCE[baseline]} {_moved(change)}"
        sentences.append(sentence + ".")
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
    found = comparison["bpb_vs_ct"]
    if found is None or found["last"]["all"] is None:
        return []
    last = found["last"]["all"]
    return [
        f"At the last step, without early stopping, the difference to continual training is "
        f"{signed_percent(last['mean'])}{_interval_text(last['ci95'])}."
    ]


def _relative(change: float, other: str = "") -> str:
    """ "3.1 % lower" or "equal", with what it is compared to where that is not said already."""
    if abs(change) < NOTHING:
        return f"equal to {other}" if other else "equal"
    return f"{abs(change) * 100:.1f} % {'lower' if change < 0 else 'higher'}" + (f" than {other}" if other else "")


def _moved(change: float) -> str:
    if abs(change) < NOTHING:
        return "is unchanged"
    return f"{'improves' if change < 0 else 'worsens'} by {abs(change) * 100:.1f} %"


def _interval_text(interval: list[float] | None) -> str:
    if interval is None:
        return ""
    return f" (95 % interval over seeds {signed_percent(interval[0])} to {signed_percent(interval[1])})"


def signed_percent(value: float, digits: int = 1) -> str:
    """A share as a signed percentage, with a true minus sign."""
    return f"{value * 100:+.{digits}f} %".replace("-", "−")


def number(value: float) -> str:
    """A count: whole if it is, else (a mean over seeds) with one digit."""
    return f"{value:.0f}" if abs(value - round(value)) < 1e-9 else f"{value:.1f}"
