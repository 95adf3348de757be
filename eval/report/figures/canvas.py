"""What all figures share: palettes, the canvas that gives an SVG, and the few forms that several figures have.

One colour per method everywhere (Okabe and Ito's palette, safe for colour-blind readers), another palette for sources.
The same numbers give the same bytes: fixed hash salt, no dates. Text stays text, so that it is sharp and searchable.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fusionx.contract.files.escaping import visible
from fusionx.eval.report.inputs import TARGET

METHOD_COLOURS = {
    TARGET: "#6B7280",
    "ct": "#E69F00",
    "fusellm": "#009E73",
    "fusellm-avgce": "#8C6D31",
    "paper": "#CC79A7",
    "fusionx": "#0072B2",
}
OTHER_COLOURS = ("#56B4E9", "#D55E00", "#000000")
SOURCE_COLOURS = ("#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#44AA99", "#882255", "#999933")
INK = "#1F2933"
QUIET = "#52606D"
WIDTH = 4.7
"""Inches; narrow, so that 9-point labels can still be read when a phone shows the figure 350 pixels wide."""


@contextmanager
def canvas(height: float) -> Iterator[tuple[Any, Any, list[str]]]:
    """A figure and its axes; on leaving, the list's one item is the SVG."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "fusionx",
        "text.parse_math": False,  # a dollar in a name is a dollar
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "axes.edgecolor": "#B8C2CC",
        "axes.labelcolor": QUIET,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "text.color": INK,
        "grid.color": "#E4E7EB",
        "legend.frameon": False,
    }
    svg: list[str] = []
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.subplots(), svg
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
        svg.append(_embeddable(buffer.getvalue()))


_METADATA = ("Date", "Creator", "Format", "Type")


def _embeddable(svg: str) -> str:
    """From `<svg` on, sized by its container, in the page's own font."""
    svg = visible(svg[svg.index("<svg") :])
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("'DejaVu Sans'", "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans'").strip()


def logarithmic(axes: Any, values: Sequence[float]) -> None:
    """A log axis that holds every value, so that a curve that runs away flattens no other and is never cut off."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log", nonpositive="mask")
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.06, 1.01)
    axes.set_ylim(low / margin, high * margin)
    # Within a factor of five, decades and their halves are too few marks.
    axes.yaxis.set_major_locator(MaxNLocator(6) if high / low < 5 else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def mean_shares(by_seed: Sequence[Mapping[int, Mapping[str, float]]]) -> tuple[list[int], dict[str, list[float]]]:
    """Steps, and every source's share of the fusion weight at each.

    Args:
        by_seed: per seed step -> source -> weight; steps that a seed lacks are left out.
    """
    steps = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    if not steps:
        return [], {}
    steps = steps[:: max(1, len(steps) // 200)]  # more points than pixels only make the file larger
    ids = list(by_seed[0][steps[0]])
    totals = {step: sum(sum(seed[step].values()) for seed in by_seed) for step in steps}
    shares = {
        name: [sum(seed[step].get(name, 0.0) for seed in by_seed) / (totals[step] or 1.0) for step in steps]
        for name in ids
    }
    return steps, shares


def stacked_shares(axes: Any, steps: Sequence[int], shares: Mapping[str, Sequence[float]]) -> None:
    """Stacked areas: each source's share of the fusion weight by step."""
    ids = list(shares)
    colours = [SOURCE_COLOURS[position % len(SOURCE_COLOURS)] for position in range(len(ids))]
    axes.stackplot(steps, [shares[name] for name in ids], labels=ids, colors=colours, edgecolor="white", linewidth=0.4)
    axes.set_xlim(steps[0], steps[-1])
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("Training step")
    axes.set_ylabel("Share of the fusion weight")
