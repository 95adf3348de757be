"""The report's figures as SVG texts, from the summary's numbers and the training logs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusionx.eval.report.figures.canvas import (
    INK,
    METHOD_COLOURS,
    OTHER_COLOURS,
    SOURCE_COLOURS,
    canvas,
    logarithmic,
    mean_shares,
    stacked_shares,
)
from fusionx.eval.report.inputs import STEPS, TARGET, ReportInputs, Step, method_label
from fusionx.eval.report.summary import SUBJECT, claim_group
from fusionx.eval.report.tables.cells import signed
from fusionx.eval.results.statistics import spread

STEP_TITLES = {"best": "at each method's best step", "last": "at the last step"}


@dataclass(frozen=True)
class Plot:
    """A figure: `name` is its file name's stem, `section` the report section it belongs to, `alt` says it in words."""

    name: str
    section: str
    title: str
    alt: str
    svg: str


def plots(inputs: ReportInputs, results: Mapping[str, Any]) -> list[Plot]:
    """Every figure for which there is data."""
    made = [*_validations(results), _groups(results)]
    made += [
        change_bars(results, kind, step, section, f"the original target, {STEP_TITLES[step]}")
        for kind, section in (("domain", "interference"), ("task", "skills"))
        for step in STEPS
    ]
    made.append(_fidelity(results))
    for method in inputs.methods():
        made += [_selection_course(inputs, method), _selection_heat(results, method)]
    return [plot for plot in made if plot is not None]


def method_colour(results: Mapping[str, Any], method: str) -> str:
    """The method's colour; methods without one of their own take the spare ones in order."""
    if method in METHOD_COLOURS:
        return METHOD_COLOURS[method]
    others = [name for name in results["methods"] if name not in METHOD_COLOURS]
    return OTHER_COLOURS[others.index(method) % len(OTHER_COLOURS)]


def with_prefix(svg: str, prefix: str) -> str:
    """The SVG with its ids made unique, so that several can stand in one page."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)


VALIDATION_TITLES = {
    "corpus": "Validation perplexity, corpus domains (dot: lowest here",
    "all": "Validation perplexity, all domains (dot: lowest here",
    "absent": "Validation perplexity, absent domains (dot: same step",
}

Curve = tuple[list[int], list[float], list[float]]
"""Steps, and mean and standard deviation over seeds at each."""


def _validations(results: Mapping[str, Any]) -> list[Plot | None]:
    """Validation perplexity by step: on the domains that the best step is chosen on, and on the absent ones."""
    chosen_on = _curves(results, "corpus_perplexity")
    dots = {method: steps[means.index(min(means))] for method, (steps, means, _) in chosen_on.items()}
    absent = _curves(results, "absent_perplexity")
    group = claim_group(results["domains"]["corpus"])
    return [_validation(results, group, chosen_on, dots), _validation(results, "absent", absent, dots)]


def _validation(
    results: Mapping[str, Any], group: str, curves: Mapping[str, Curve], dots: Mapping[str, int]
) -> Plot | None:
    if not curves:
        return None
    words = []
    with canvas(3.3) as (figure, axes, svg):
        for method, (steps, means, spreads) in curves.items():
            colour = method_colour(results, method)
            axes.plot(steps, means, color=colour, linewidth=2.4 if method == SUBJECT else 1.6,
                      label=method_label(method))  # fmt: skip
            if any(spreads):
                low = [mean - wide for mean, wide in zip(means, spreads, strict=True)]
                high = [mean + wide for mean, wide in zip(means, spreads, strict=True)]
                axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
            words.append(f"{method_label(method)} last {means[-1]:.2f}")
            if dots.get(method) in steps:
                at_dot = means[steps.index(dots[method])]
                axes.plot(dots[method], at_dot, "o", color=colour, markersize=6, markeredgecolor="white", zorder=4)
                words[-1] += f", {at_dot:.2f} at step {dots[method]}"
        logarithmic(axes, [mean for _, means, _ in curves.values() for mean in means])
        axes.set_xlabel("Training step")
        axes.set_ylabel("Perplexity per token (log scale)")
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=2)
    alt = f"Line chart. {'; '.join(words)}."
    many = any(any(spreads) for _, _, spreads in curves.values())
    title = VALIDATION_TITLES[group] + ("; band: ± over seeds)" if many else ")")
    return Plot(f"validation-{group}", "overview", title, alt, svg[0])


def _curves(results: Mapping[str, Any], figure: str) -> dict[str, Curve]:
    curves = {method: _mean_curve(seeds, figure) for method, seeds in results["curves"].items()}
    return {method: curve for method, curve in curves.items() if len(curve[0]) > 1}


def _mean_curve(seeds: Mapping[str, Sequence[Mapping[str, Any]]], figure: str) -> Curve:
    """Over the steps at which every seed has the figure."""
    by_seed = [
        {record["step"]: record[figure] for record in records if record[figure] is not None}
        for records in seeds.values()
    ]
    steps = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    values = [[seed[step] for seed in by_seed] for step in steps]
    return steps, [sum(found) / len(found) for found in values], [spread(found) for found in values]


def _groups(results: Mapping[str, Any]) -> Plot | None:
    """Bars: mean change against the original target over corpus and absent domains, at the best and last step."""
    methods = [method for method in results["methods"] if method != TARGET]
    groups = [
        (group, words) for group, words in (("corpus", "corpus"), ("absent", "absent")) if results["domains"][group]
    ]
    if not methods or not groups:
        return None
    rows = [(group, step, f"{words},\n{step} step") for group, words in groups for step in STEPS]
    start = {group: _group_bits(results["methods"][TARGET]["mean"]["best"], group) for group, _ in groups}
    thickness = 0.8 / len(methods)
    with canvas(3.3) as (figure, axes, svg):
        for order, method in enumerate(methods):
            mean, deviation = results["methods"][method]["mean"], results["methods"][method]["spread"]
            places = [-row + 0.4 - (order + 0.5) * thickness for row in range(len(rows))]
            changes = [100 * (_group_bits(mean[step], group) / start[group] - 1) for group, step, _ in rows]
            errors = [
                100 * _group_bits(deviation[step], group) / start[group] if deviation[step] else 0.0
                for group, step, _ in rows
            ]
            _bars(axes, places, changes, errors, thickness, method_colour(results, method), method_label(method))
        axes.set_yticks([-row for row in range(len(rows))], [label for _, _, label in rows])
        axes.set_ylim(-len(rows) + 0.5, 0.5)
        _finish_bars(figure, axes, "Change in bits per byte, % (right: worse)")
    at_best = {
        method: [100 * (_group_bits(results["methods"][method]["mean"]["best"], g) / start[g] - 1) for g, _ in groups]
        for method in methods
    }
    ends = "; ".join(
        " ".join(
            [method_label(method), *(f"{c:+.1f} % ({words})" for c, (_, words) in zip(found, groups, strict=True))]
        )
        for method, found in at_best.items()
    )
    title = "Corpus domains and absent domains against the original target"
    return Plot("change-groups", "overview", title, f"Bar chart, at the best step: {ends}.", svg[0])


def _group_bits(snapshot: Mapping[str, Any], group: str) -> float:
    return float(snapshot["groups"][group]["bits_per_byte"])


def _bars(
    axes: Any,
    places: Sequence[float],
    changes: Sequence[float],
    errors: Sequence[float],
    thickness: float,
    colour: str,
    label: str,
) -> None:
    """One method's horizontal bars, with thin lines for the spread over seeds where there is one."""
    axes.barh(places, changes, thickness * 0.92, color=colour, label=label, xerr=errors if any(errors) else None,
              error_kw={"elinewidth": 0.7, "ecolor": INK})  # fmt: skip


def _finish_bars(figure: Any, axes: Any, label: str) -> None:
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.grid(axis="x")
    axes.set_xlabel(label)
    figure.legend(loc="outside upper left", ncols=2)


def _is_drawn(unit: Mapping[str, Any], kind: str) -> bool:
    """A skill whose score is no share of right answers has no place on an axis of points."""
    return unit["kind"] == kind and (kind == "domain" or unit["share"])


def change_bars(results: Mapping[str, Any], kind: str, step: Step, section: str, against: str) -> Plot | None:
    """Bars per domain or task: the change against the original target, one bar per method; None without such units.

    Args:
        section: of the report, to which the figure belongs. against: what the title calls the comparison.
    """
    found = results["interference"]
    by_method = {
        method: {unit["name"]: unit for unit in found[method][step]["units"] if _is_drawn(unit, kind)}
        for method in found
    }
    by_method = {method: units for method, units in by_method.items() if units}
    if not by_method:
        return None
    first = next(iter(by_method.values()))
    # Drawn from the bottom up: absent domains last, so that they stand together below the others.
    names = sorted(first, key=lambda name: (first[name]["absent"], name))[::-1]
    thickness = 0.8 / len(by_method)
    with canvas(0.9 + len(names) * max(0.24, 0.085 * len(by_method))) as (figure, axes, svg):
        for order, (method, units) in enumerate(by_method.items()):
            # Bars go down from the group's top, in the order of the legend.
            places = [row + 0.4 - (order + 0.5) * thickness for row in range(len(names))]
            sign = 1 if kind == "domain" else -1
            changes = [100 * sign * units[name]["loss"] for name in names]
            errors = [100 * (units[name]["loss_spread"] or 0.0) for name in names]
            _bars(axes, places, changes, errors, thickness, method_colour(results, method), method_label(method))
        absent = [row for row, name in enumerate(names) if first[name]["absent"]]
        if absent:
            axes.axhspan(-0.5, max(absent) + 0.5, color="#F1F3F5", zorder=0)
        axes.set_yticks(range(len(names)), [name + (" *" if first[name]["absent"] else "") for name in names])
        axes.set_ylim(-0.5, len(names) - 0.5)
        domain_label, task_label = (
            "Change in bits per byte, % (right: worse)",
            "Change in accuracy, points (left: worse)",
        )
        _finish_bars(figure, axes, domain_label if kind == "domain" else task_label)
    what = "Held-out bits per byte" if kind == "domain" else "Skill accuracy"
    note = "; shaded, *: not in the corpus" if absent else ""
    title = f"{what} against {against}{note}"
    worst = {m: max(u.values(), key=lambda unit: unit["loss"]) for m, u in by_method.items()}
    alt = "Bar chart. Largest loss: " + "; ".join(
        f"{method_label(m)} {100 * unit['loss']:+.1f} in {unit['name']}" for m, unit in worst.items()
    )
    return Plot(f"change-{kind}-{step}", section, title, alt + ".", svg[0])


def _selection_course(inputs: ReportInputs, method: str) -> Plot | None:
    """Stacked areas: each source's mean fusion weight by step, averaged over seeds."""
    steps, shares = _mean_weights(inputs, method)
    if len(steps) < 2:
        return None
    ids = list(shares)
    with canvas(3.1) as (figure, axes, svg):
        stacked_shares(axes, steps, shares)
        figure.legend(loc="outside upper left", ncols=2)
    ends = ", ".join(f"{name} {100 * shares[name][0]:.0f} to {100 * shares[name][-1]:.0f} %" for name in ids)
    title = f"{method_label(method)}: weight per source over training"
    return Plot(f"selection-{method}", "selection", title, f"Area chart, from first to last step: {ends}.", svg[0])


def _mean_weights(inputs: ReportInputs, method: str) -> tuple[list[int], dict[str, list[float]]]:
    by_seed = [
        {record["step"]: record["weight"] for record in run.events("step") if record.get("weight")}
        for run in inputs.runs_of(method).values()
    ]
    return mean_shares(by_seed)


def _selection_heat(results: Mapping[str, Any], method: str) -> Plot | None:
    """Heat map: mean fusion weight by domain (rows) and source (columns), numbers in the cells."""
    found = results["selection"].get(method)
    if found is None:
        return None
    absent = results["domains"]["absent"]
    domains = sorted(found["domains"], key=lambda name: (name in absent, name))
    ids = list(found["mean"])
    shares = [[found["domains"][domain][name] for name in ids] for domain in domains]
    with canvas(1.0 + 0.24 * len(domains)) as (_, axes, svg):
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1.2)
        for row, values in enumerate(shares):
            for column, value in enumerate(values):
                colour = "white" if value > 0.55 else INK
                axes.text(column + 0.5, row + 0.5, f"{100 * value:.0f}", ha="center", va="center", color=colour,
                          fontsize=8)  # fmt: skip
        axes.invert_yaxis()
        axes.xaxis.tick_top()
        short = max(map(len, ids)) * len(ids) <= 40
        axes.set_xticks([position + 0.5 for position in range(len(ids))], ids, rotation=0 if short else 25,
                        ha="center" if short else "left")  # fmt: skip
        axes.set_yticks([position + 0.5 for position in range(len(domains))],
                        [name + (" *" if name in absent else "") for name in domains])  # fmt: skip
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    strongest = "; ".join(
        f"{domain}: {max(found['domains'][domain], key=found['domains'][domain].get)}" for domain in domains
    )
    title = f"{method_label(method)}: weight per domain and source, % (at the end of training)"
    return Plot(f"selection-domains-{method}", "selection", title, f"Heat map. Largest weight: {strongest}.", svg[0])


# A dot inside its ring: nothing was lost.
_OWN: dict[str, Any] = {"marker": "o", "markersize": 7.5, "markerfacecolor": "white", "markeredgewidth": 1.2}
_ALIGNED: dict[str, Any] = {"marker": "o", "markersize": 4.5}
_TARGET: dict[str, Any] = {"marker": "|", "markersize": 11, "markeredgewidth": 1.5, "color": INK}


def _fidelity(results: Mapping[str, Any]) -> Plot | None:
    """Per source and method a line from the bits per byte on its own tokens to those of the target's tokens, and where
    the target itself stands by the same method."""
    methods = {method: {id: of for id, of in found.items() if of} for method, found in results["fidelity"].items()}
    sources = list(dict.fromkeys(source for found in methods.values() for source in found))
    if not sources:
        return None
    rows = [(source, method) for source in sources for method in methods if source in methods[method]]
    # A gap of half a row between sources.
    places = [-row - 0.5 * sources.index(source) for row, (source, _) in enumerate(rows)]
    with canvas(1.1 + 0.2 * (len(rows) + 0.5 * len(sources))) as (figure, axes, svg):
        for (source, method), place in zip(rows, places, strict=True):
            own, aligned = (methods[method][source][""][f"{of}_bits_per_byte"] for of in ("own", "aligned"))
            colour = SOURCE_COLOURS[list(methods).index(method)]
            target = methods[method].get(results["target"]) if source != results["target"] else None
            axes.plot([own, aligned], [place, place], color=colour, linewidth=1.6)
            axes.plot(own, place, **_OWN, markeredgecolor=colour)
            axes.plot(aligned, place, **_ALIGNED, color=colour)
            if target:
                axes.plot(target[""]["aligned_bits_per_byte"], place, **_TARGET)
        axes.set_yticks(places, [f"{source}, {method}" for source, method in rows])
        axes.set_ylim(min(places) - 0.7, 0.7)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("Bits per byte (right: worse)")
        figure.legend(handles=_fidelity_legend(), loc="outside upper left", ncols=3, handletextpad=0.2)
    costs = "; ".join(
        f"{source} {signed(methods[method][source]['']['cost'], 3)} ({method})" for source, method in rows
    )
    title = f"What alignment costs, {results['alignment_split']} split: from each source's own tokens to the target's"
    return Plot("fidelity", "alignment", title, f"Dot chart. Cost in bits per byte: {costs}.", svg[0])


def _fidelity_legend() -> list[Any]:
    from matplotlib.lines import Line2D

    looks = {"own tokens": _OWN, "aligned": _ALIGNED, "the target itself": _TARGET}
    return [Line2D([], [], **{"color": INK, "linestyle": ""} | look, label=label) for label, look in looks.items()]
