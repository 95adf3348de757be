"""The figure of each study as SVG, from its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusionx.eval.report.figures.canvas import (
    INK,
    METHOD_COLOURS,
    OTHER_COLOURS,
    QUIET,
    SOURCE_COLOURS,
    canvas,
    logarithmic,
    stacked_shares,
)
from fusionx.eval.report.figures.plots import Plot

_CORPUS = "Corpus domains, bits per byte"
_COLOUR = METHOD_COLOURS["fusionx"]

Results = Mapping[str, Any]
StudyCell = Mapping[str, Any]


def figures(results: Results) -> list[Plot]:
    """The study's figures; none where no training finished."""
    if not any(cell["best"]["corpus"] for cell in results["cells"]):
        return []
    return _MAKERS[results["figure"]](results)


def _dots(results: Results) -> list[Plot]:
    """A row per cell: mean and interval; the line is what the cells are compared with."""
    cells = results["cells"]
    with canvas(0.9 + 0.24 * len(cells)) as (_, axes, svg):
        for row, cell in enumerate(cells):
            found = cell["best"]["corpus"]
            if found is None:
                continue
            axes.errorbar(found["mean"], -row, xerr=_arms(found), fmt="o", color=_COLOUR, ecolor=INK, elinewidth=0.8)
            if cell["same_as_against"]:
                axes.axvline(found["mean"], color=QUIET, linewidth=0.8, linestyle=":")
        names = [", ".join(cell["labels"]) + (" (failed)" if cell["failed"] else "") for cell in cells]
        axes.set_yticks([-row for row in range(len(cells))], names)
        axes.set_ylim(-len(cells) + 0.5, 0.5)
        axes.grid(axis="x")
        axes.set_xlabel(f"{_CORPUS} (left: better)", loc="right")  # centred, it would not fit beside long names
    return [_plot(results, svg, "Dot chart", _said(results))]


def _grid(results: Results) -> list[Plot]:
    """A heat map over the two columns, numbers in the cells; a failed cell says so."""
    rows, columns = (list(dict.fromkeys(cell["labels"][axis] for cell in results["cells"])) for axis in (0, 1))
    of = {tuple(cell["labels"]): cell["best"]["corpus"] for cell in results["cells"]}
    values = [[of[row, column]["mean"] if of[row, column] else float("nan") for column in columns] for row in rows]
    known = [found["mean"] for found in of.values() if found]
    middle = (min(known) + max(known)) / 2
    with canvas(1.2 + 0.42 * len(rows)) as (_, axes, svg):
        axes.pcolormesh(values, cmap="Blues_r", edgecolors="white", linewidth=1.2)
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                found = of[row, column]
                colour = "white" if found and found["mean"] < middle else INK
                text = f"{found['mean']:.4f}" if found else "failed"
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks([place + 0.5 for place in range(len(columns))], columns)
        axes.set_yticks([place + 0.5 for place in range(len(rows))], rows)
        axes.tick_params(length=0)
        axes.set_ylabel(results["columns"][0])
        axes.set_xlabel(results["columns"][1])
    return [_plot(results, svg, "Heat map, darker is better", _said(results))]


def _thresholds(results: Results) -> list[Plot]:
    """Bits per byte (left) and how many candidates are chosen (right) by the threshold."""
    cells = [cell for cell in results["cells"] if cell["best"]["corpus"]]
    taus = [float(cell["labels"][0]) for cell in cells]
    with canvas(3.0) as (figure, axes, svg):
        _line(axes, taus, [cell["best"]["corpus"] for cell in cells], _COLOUR, "bits per byte (left)")
        right = _right_axis(axes, "Candidates chosen")
        _line(right, taus, [cell["chosen"] for cell in cells], METHOD_COLOURS["ct"], "candidates chosen (right)", "--")
        axes.set_xticks(taus)
        axes.set_xlabel("Threshold tau")
        axes.set_ylabel(_CORPUS)
        figure.legend(loc="outside upper left", ncols=2)
    return [_plot(results, svg, "Line chart", _said(results))]


def _sources(results: Results) -> list[Plot]:
    """Bits per byte (left, solid) and the share of worse domains (right, dashed) by the number of candidates.

    Across both, dotted, is bits per byte without candidates.
    """
    by_method: dict[str, list[StudyCell]] = {}
    for cell in results["cells"]:
        if cell["best"]["corpus"]:
            by_method.setdefault(cell["method"], []).append(cell)
    with canvas(3.3) as (figure, axes, svg):
        right = _right_axis(axes, "Domains worse than the target, %")
        for method, cells in by_method.items():
            counts = [int(cell["labels"][0]) for cell in cells]
            colour = METHOD_COLOURS.get(method, OTHER_COLOURS[0])
            if method == "ct":
                axes.axhline(cells[0]["best"]["corpus"]["mean"], color=colour, linestyle=":", label=method)
                continue
            _line(axes, counts, [cell["best"]["corpus"] for cell in cells], colour, method)
            _line(right, counts, [cell["best"]["worse"] for cell in cells], colour, "", "--", 100)
        axes.set_xticks(sorted({int(cell["labels"][0]) for cell in results["cells"] if cell["method"] != "ct"}))
        axes.set_xlabel("Candidates, the target among them")
        axes.set_ylabel(f"{_CORPUS} (solid)")
        figure.legend(loc="outside upper left", ncols=3)
    return [_plot(results, svg, "Line chart", _said(results))]


def _efficiency(results: Results) -> list[Plot]:
    """Validation perplexity by tokens; the dotted lines are the baselines' last."""
    with canvas(3.3) as (figure, axes, svg):
        values = []
        for order, cell in enumerate(results["cells"]):
            curve = cell["curve"]
            if not curve:
                continue
            colour = METHOD_COLOURS.get(cell["method"], OTHER_COLOURS[order % len(OTHER_COLOURS)])
            values += [point["perplexity"] for point in curve]
            axes.plot([point["tokens"] for point in curve], [point["perplexity"] for point in curve], color=colour,
                      marker=".", label=cell["labels"][0])  # fmt: skip
            if cell["method"] in ("ct", "fusellm"):
                axes.axhline(curve[-1]["perplexity"], color=colour, linewidth=0.8, linestyle=":")
        logarithmic(axes, values)
        axes.set_xlabel("Training tokens")
        axes.set_ylabel("Perplexity, corpus domains (log scale)")
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=3)
    return [_plot(results, svg, "Line chart", _said(results))]


def _selection(results: Results) -> list[Plot]:
    """One figure per method."""
    made = []
    for cell in results["cells"]:
        steps, shares = cell["course"]["steps"], cell["course"]["shares"]
        if len(steps) < 2:
            continue
        with canvas(3.1) as (figure, axes, svg):
            stacked_shares(axes, steps, shares)
            figure.legend(loc="outside upper left", ncols=2)
        ends = ", ".join(f"{name} {100 * of[0]:.0f} to {100 * of[-1]:.0f} %" for name, of in shares.items())
        made.append(_plot(results, svg, "Area chart", ends, cell["labels"][0]))
    return made


def _data(results: Results) -> list[Plot]:
    """The change against ct by the share of the text, a line per method and number of epochs; fusellm's are dashed."""
    lines: dict[tuple[str, float], list[StudyCell]] = {}
    for cell in results["cells"]:
        if cell["change"]:
            lines.setdefault((cell["method"], float(cell["labels"][1])), []).append(cell)
    colours = {epochs: SOURCE_COLOURS[order] for order, epochs in enumerate(sorted({epochs for _, epochs in lines}))}
    with canvas(3.8) as (figure, axes, svg):
        for (method, epochs), cells in sorted(lines.items()):
            shares = [float(cell["labels"][0].removesuffix(" %")) for cell in cells]
            style = "--" if method == "fusellm" else "-"
            changes = [cell["change"] for cell in cells]
            _line(axes, shares, changes, colours[epochs], f"{method}, {epochs:g} epochs", style, 100)
        axes.axhline(0, color=INK, linewidth=0.9)
        axes.set_xlabel("Share of the training text, %")
        axes.set_ylabel("Bits per byte against ct, % (down: better)")
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=2)
    return [_plot(results, svg, "Line chart", _said(results))]


_MAKERS: dict[str, Callable[[Results], list[Plot]]] = {
    "dots": _dots,
    "grid": _grid,
    "thresholds": _thresholds,
    "sources": _sources,
    "efficiency": _efficiency,
    "selection": _selection,
    "data": _data,
}


def _line(
    axes: Any,
    x: Sequence[float],
    found: Sequence[Mapping[str, Any] | None],
    colour: str,
    label: str,
    style: str = "-",
    scale: float = 1,
) -> None:
    """Means with their intervals, where there are any."""
    known = [(place, value) for place, value in zip(x, found, strict=True) if value is not None]
    arms = [_arms(value, scale) for _, value in known]
    axes.errorbar(
        [place for place, _ in known],
        [scale * value["mean"] for _, value in known],
        yerr=None if None in arms else [[arm[side][0] for arm in arms if arm] for side in (0, 1)],
        color=colour,
        linestyle=style,
        marker="o",
        markersize=4,
        elinewidth=0.8,
        label=label or None,
    )


def _arms(found: Mapping[str, Any], scale: float = 1) -> list[list[float]] | None:
    """How far the interval reaches below and above the mean; None for one seed."""
    if found["ci95"] is None:
        return None
    low, high = found["ci95"]
    return [[scale * (found["mean"] - low)], [scale * (high - found["mean"])]]


def _right_axis(axes: Any, label: str) -> Any:
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    right.set_ylabel(label)
    return right


def _said(results: Results) -> str:
    return "; ".join(
        f"{', '.join(cell['labels'])}: {cell['best']['corpus']['mean']:.4f}"
        if cell["best"]["corpus"]
        else f"{', '.join(cell['labels'])}: failed"
        for cell in results["cells"]
    )


def _plot(results: Results, svg: list[str], kind: str, said: str, of: str = "") -> Plot:
    title = results["title"][0].upper() + results["title"][1:] + (f": {of}" if of else "")
    name = f"figure-{of}" if of else "figure"
    return Plot(name, results["study"], title, f"{kind}. {said}.", svg[0])
