"""What all figures share: palettes, the canvas that gives an SVG, and the few forms that several figures have.

One colour per method everywhere (Okabe and Ito's palette, safe for colour-blind readers), another palette for sources.
The same numbers give the same bytes: fixed hash salt, no dates. Text stays text, so that it is sharp and searchable.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

from fusionx.contract.files.escaping import visible
from fusionx.eval.report.inputs import TARGET

METHOD_COLOURS = {
    TARGET: "#6B7280",
    "ct": "#E69F00",
    "fusellm": "#009E73",
    "fusellm-avgce": "#8C6D31",
    "paper": "#CC79A7",
    "fusionx-network": "#56B4E9",
    "fusionx": "#0072B2",
}
OTHER_COLOURS = ("#D55E00", "#000000", "#7F3C8D")
SOURCE_COLOURS = ("#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#44AA99", "#882255", "#999933")
METHOD_MARKERS = {
    **{TARGET: "|", "ct": "s", "fusellm": "^", "fusellm-avgce": "v", "paper": "D"},
    **{"fusionx-network": "h", "fusionx": "o"},
}
"""Forms and dashes tell methods apart where colours do not: in print, and to every eye."""
OTHER_MARKERS = ("P", "X", "*")
METHOD_DASHES: Mapping[str, Any] = {"ct": (0, (5, 2)), "fusellm": (0, (1, 1.2)), "paper": (0, (4, 1.5, 1, 1.5))}
OTHER_DASHES: Sequence[Any] = ((0, (8, 2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (2, 2)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oo")
INK = "#1F2933"
QUIET = "#52606D"
ON_CELL = "#111111"
"""On the lighter cells of a heat map, which look the same on every page."""
_LONGEST_NAME = 28
DARK = {
    INK: "#E4E7EB", QUIET: "#A3B0BD", "#B8C2CC": "#5B6875", "#E4E7EB": "#313A44", "#F1F3F5": "#232A32",
    "#FFFFFF": "#14181D", "#000000": "#FFFFFF", "#6B7280": "#9AA5B1", "#8C6D31": "#C09A4E", "#0072B2": "#3D9BDC",
    "#332288": "#8F86E8", "#117733": "#3FA968", "#882255": "#D0679B",
}  # fmt: skip
"""Colours of figures -> what they are on a dark page; the others are seen on both."""
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
    """From `<svg` on, sized by its container, in the page's own font, without the comments that repeat its text."""
    svg = visible(re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL))
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("'DejaVu Sans'", "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans'").strip()


def described(svg: str, name: str, title: str, alt: str) -> str:
    """The SVG with a title and a description for who does not see it, and ids that are its own on any page."""
    svg = _in_tags(r'\b(id="|href="#|\(#)(?=[^")]+[")])', rf"\1{name}-", svg)
    words = "".join(
        f'<{tag} id="{name}-{tag}">{escape(visible(text), quote=False)}</{tag}>'
        for tag, text in (("title", title), ("desc", alt))
    )
    attributes, _, drawing = svg.removeprefix("<svg").partition(">")
    return f'<svg role="img" aria-labelledby="{name}-title {name}-desc"{attributes}>{words}{drawing}'


def themed(svg: str) -> str:
    """The SVG with the colours of `DARK` as variables of the page around it, named by the colour (`--c1f2933`)."""
    names = "|".join(colour[1:].lower() for colour in DARK)
    return _in_tags(rf"(: )#({names})\b", r"\1var(--c\2, #\2)", svg)


def _in_tags(pattern: str, replacement: str, svg: str) -> str:
    """Replaced in tags alone: what stands between them may be text from data. A `>` in an attribute is escaped."""
    return re.sub(r"<[^>]*>", lambda tag: re.sub(pattern, replacement, tag[0]), svg)


def short(name: str) -> str:
    """A name from data beside an axis: one line, which leaves room for the figure."""
    line = visible(name).replace("\n", " ").replace("\t", " ")
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "…"


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
    hatches = [HATCHES[position % len(HATCHES)] for position in range(len(ids))]
    axes.stackplot(steps, [shares[name] for name in ids], labels=[*map(short, ids)], colors=colours, hatch=hatches,
                   edgecolor="white", linewidth=0.3)  # fmt: skip
    axes.set_xlim(steps[0], steps[-1])
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("Training step")
    axes.set_ylabel("Share of the fusion weight")
