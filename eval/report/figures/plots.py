"""The report's figures as SVG texts, from the summary's numbers and the training logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusionx.eval.report.figures.canvas import (
    INK,
    METHOD_COLOURS,
    METHOD_DASHES,
    METHOD_MARKERS,
    ON_CELL,
    OTHER_COLOURS,
    OTHER_DASHES,
    OTHER_MARKERS,
    SOURCE_COLOURS,
    canvas,
    logarithmic,
    mean_shares,
    short,
    stacked_shares,
)
from fusionx.eval.report.inputs import TARGET, ReportInputs, Step, method_label
from fusionx.eval.report.summary import SUBJECT, claim_group
from fusionx.eval.report.tables.cells import signed
from fusionx.eval.report.tables.units import STEP_WORDS
from fusionx.eval.results.statistics import spread


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
        change_points(results, kind, "best", "losses", f"the original target, {STEP_WORDS['best']}")
        for kind in ("domain", "task")
    ]
    made.append(_fidelity(results))
    chosen = [SUBJECT] if SUBJECT in results["selection"] else list(results["selection"])
    for method in chosen:
        made += [_selection_course(inputs, method), _selection_heat(results, method)]
    return [plot for plot in made if plot is not None]


def method_look(results: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Colour and form of a method's points; methods without ones of their own take the spare ones in order."""
    if method in METHOD_COLOURS:
        return {"color": METHOD_COLOURS[method], "marker": METHOD_MARKERS[method]}
    place = _place(results, method)
    return {"color": OTHER_COLOURS[place % len(OTHER_COLOURS)], "marker": OTHER_MARKERS[place % len(OTHER_MARKERS)]}


def _dashes(results: Mapping[str, Any], method: str) -> Any:
    if method in METHOD_COLOURS:
        return METHOD_DASHES.get(method, "-")
    return OTHER_DASHES[_place(results, method) % len(OTHER_DASHES)]


def _place(results: Mapping[str, Any], method: str) -> int:
    return [name for name in results["methods"] if name not in METHOD_COLOURS].index(method)


VALIDATION_TITLES = {
    "corpus": "Validation perplexity, corpus domains (mark: lowest here",
    "all": "Validation perplexity, all domains (mark: lowest here",
    "absent": "Validation perplexity, absent domains (mark: same step",
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
            look = method_look(results, method)
            colour = look["color"]
            axes.plot(steps, means, color=colour, linewidth=2.4 if method == SUBJECT else 1.6,
                      linestyle=_dashes(results, method), label=method_label(method))  # fmt: skip
            if any(spreads):
                low = [mean - wide for mean, wide in zip(means, spreads, strict=True)]
                high = [mean + wide for mean, wide in zip(means, spreads, strict=True)]
                axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
            words.append(f"{method_label(method)} last {means[-1]:.2f}")
            if dots.get(method) in steps:
                at_dot = means[steps.index(dots[method])]
                axes.plot(dots[method], at_dot, **look, markersize=7, markeredgecolor="white", zorder=4)
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
    """Points: mean change against the original target over corpus and absent domains, at each method's best step."""
    methods = [method for method in results["methods"] if method != TARGET]
    groups = [group for group in ("corpus", "absent") if results["domains"][group]]
    if not methods or not groups:
        return None
    start = {group: _group_bits(results["methods"][TARGET]["mean"]["best"], group) for group in groups}
    changes = {
        method: [100 * (_group_bits(results["methods"][method]["mean"]["best"], of) / start[of] - 1) for of in groups]
        for method in methods
    }
    deviations = {method: results["methods"][method]["spread"]["best"] for method in methods}
    errors = {
        method: [100 * _group_bits(wide, of) / start[of] if wide else 0.0 for of in groups]
        for method, wide in deviations.items()
    }
    with canvas(2.6) as (figure, axes, svg):
        _points(results, axes, changes, errors)
        axes.set_yticks(range(len(groups)), [f"{group}\ndomains" for group in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        _finish_points(figure, axes, "Change in bits per byte, % (left: better, right: worse)")
    ends = "; ".join(
        " ".join([method_label(method), *(f"{c:+.1f} % ({words})" for c, words in zip(found, groups, strict=True))])
        for method, found in changes.items()
    )
    title = "Gained and forgotten: corpus domains and absent domains against the original target"
    return Plot("change-groups", "overview", title, f"Point chart, at the best step: {ends}.", svg[0])


def _group_bits(snapshot: Mapping[str, Any], group: str) -> float:
    return float(snapshot["groups"][group]["bits_per_byte"])


def _points(
    results: Mapping[str, Any], axes: Any, changes: Mapping[str, Sequence[float]], errors: Mapping[str, Sequence[float]]
) -> None:
    """A row of points per place from the top down, one per method, a little below each other; a line joins them to
    nothing lost, and a thin one shows the spread over seeds where there is one."""
    step = 0.64 / max(len(changes), 1)
    for order, (method, values) in enumerate(changes.items()):
        look = method_look(results, method)
        places = [row + (order + 0.5) * step - 0.32 for row in range(len(values))]
        axes.hlines(places, 0, values, color=look["color"], linewidth=1.0)
        axes.errorbar(values, places, xerr=errors[method] if any(errors[method]) else None, linestyle="", **look,
                      markersize=5.5 if method == SUBJECT else 4.5, label=method_label(method), elinewidth=0.7,
                      ecolor=INK)  # fmt: skip


def _finish_points(figure: Any, axes: Any, label: str) -> None:
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.grid(axis="x")
    axes.set_xlabel(label)
    figure.legend(loc="outside upper left", ncols=2)


def _is_drawn(unit: Mapping[str, Any], kind: str) -> bool:
    """A skill whose score is no share of right answers has no place on an axis of points."""
    return unit["kind"] == kind and (kind == "domain" or unit["share"])


def change_points(results: Mapping[str, Any], kind: str, step: Step, section: str, against: str) -> Plot | None:
    """Points per domain or task, the largest loss first: the change against the original target under every method;
    None without such units.

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
    leading = [by_method[SUBJECT]] if SUBJECT in by_method else list(by_method.values())
    names = sorted(first, key=lambda name: (-max(units[name]["loss"] for units in leading), name))
    sign = 1 if kind == "domain" else -1
    changes = {method: [100 * sign * units[name]["loss"] for name in names] for method, units in by_method.items()}
    errors = {
        method: [100 * (units[name]["loss_spread"] or 0.0) for name in names] for method, units in by_method.items()
    }
    absent = [row for row, name in enumerate(names) if first[name]["absent"]]
    with canvas(0.95 + len(names) * max(0.24, 0.085 * len(by_method))) as (figure, axes, svg):
        _points(results, axes, changes, errors)
        for row in absent:
            axes.axhspan(row - 0.5, row + 0.5, color="#F1F3F5", zorder=0)
        axes.set_yticks(range(len(names)), [short(name) + (" *" if first[name]["absent"] else "") for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        domain_label, task_label = (
            "Change in bits per byte, % (right: worse)",
            "Change in accuracy, points (left: worse)",
        )
        _finish_points(figure, axes, domain_label if kind == "domain" else task_label)
    what = "Held-out bits per byte" if kind == "domain" else "Skill accuracy"
    note = "; shaded, *: not in the corpus" if absent else ""
    title = f"{what} against {against}{note}"
    alt = "Point chart, the largest loss first. " + "; ".join(
        _extremes(m, units, sign) for m, units in by_method.items()
    )
    return Plot(f"change-{kind}-{step}", section, title, alt + ".", svg[0])


def _extremes(method: str, units: Mapping[str, Mapping[str, Any]], sign: int) -> str:
    """The worst and the best change in words, with the sign that the figure gives them."""
    ranked = sorted(units.values(), key=lambda unit: -unit["loss"])
    worst, best = (f"{100 * sign * unit['loss']:+.1f} in {unit['name']}" for unit in (ranked[0], ranked[-1]))
    return f"{method_label(method)}: worst {worst}, best {best}"


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
                colour = "#FEFEFE" if value > 0.55 else ON_CELL
                axes.text(column + 0.5, row + 0.5, f"{100 * value:.0f}", ha="center", va="center", color=colour,
                          fontsize=8)  # fmt: skip
        axes.invert_yaxis()
        axes.xaxis.tick_top()
        heads = [short(name) for name in ids]
        fit = max(map(len, heads)) * len(heads) <= 40
        axes.set_xticks([position + 0.5 for position in range(len(ids))], heads, rotation=0 if fit else 25,
                        ha="center" if fit else "left")  # fmt: skip
        axes.set_yticks([position + 0.5 for position in range(len(domains))],
                        [short(name) + (" *" if name in absent else "") for name in domains])  # fmt: skip
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
        axes.set_yticks(places, [f"{short(source)}, {method}" for source, method in rows])
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
