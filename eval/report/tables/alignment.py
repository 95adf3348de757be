"""What alignment left of the sources: beside their own tokens, beside the target, by domain and by token length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fusionx.eval.report.tables.cells import MISSING, Cell, Section, Table, Tone, percent, signed
from fusionx.eval.report.teaching import standings, warnings

_NO_FIGURE = Cell(MISSING, tone="muted")


def alignment(results: Mapping[str, Any]) -> Section | None:
    if not results["alignment"]:
        return None
    tables, notes = [_statuses(results)], [f"Everything here is of the {results['alignment_split']} split."]
    if results["fidelity"]:
        notes += _fidelity_notes()
        tables = [_fidelity(results), *tables, *_by_domain(results)]
    if results["calibration"]:
        notes.append(
            "By length: the mass that the entries give to tokens of so many bytes, over how often such tokens come "
            "next, for the source's own tokens, for the target's under its aligned distributions, and for the target "
            "itself. The text's next token is right by construction; this tells what became of the mass beside it."
        )
        tables.append(_calibration(results))
    notes.append(
        "By status: the share of target positions by how they were aligned with each source; where it is not aligned, "
        "a source drops out."
    )
    return Section("alignment", "What each source gave, before and after alignment", notes, tables, warnings(results))


def _fidelity_notes() -> list[str]:
    return [
        "Own: a source's bits per byte on its own tokens. Aligned: those of the target's next tokens under its aligned "
        "distributions, with nothing but what the source says; the difference is what alignment costs. Filled in: with "
        "what the target itself adds where the source does not decide. Right: the most probable aligned token is the "
        "next one; blind: without following how the text itself goes on, as the walk does. What a teacher adds to the "
        "text is what it knows blind. All but “own” are over positions that are aligned.",
        "Against the target: the source's aligned bits per byte less the target's own by the same method, above zero "
        "where the source knows less; and in how many domains it knows more.",
    ]


def _rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Method, source and its figures by domain; a source's methods stand together."""
    found = results["fidelity"]
    for source in dict.fromkeys(source for by_source in found.values() for source in by_source):
        for method, by_source in found.items():
            if source in by_source:
                yield method, source, by_source[source]


def _fidelity(results: Mapping[str, Any]) -> Table:
    beside = standings(results)
    rows = []
    for method, source, by_domain in _rows(results):
        found = beside[method].get(source)
        against = [
            Cell(signed(found.source - found.target, 4), tone="worse" if found.source > found.target else ""),
            Cell(f"{len(found.better)} of {found.domains}", tone="" if found.better else "worse"),
        ] if found else [_NO_FIGURE, _NO_FIGURE]  # fmt: skip
        costs = [of[source][""]["cost"] for of in results["fidelity"].values() if of.get(source)]
        best = bool(by_domain) and len(costs) > 1 and by_domain[""]["cost"] == min(costs) < max(costs)
        rows.append([Cell(source, method), *_figures(by_domain.get(""), 4, "best" if best else ""), *against])
    header = ["Source (alignment)", *_COLUMNS, "Against the target", "Better in domains"]
    return Table(f"What alignment costs, bits per byte, {results['alignment_split']} split", header, rows)


_COLUMNS = ("Own", "Aligned", "Difference", "Filled in", "Right", "Right, blind")


def _figures(
    found: Mapping[str, float] | None, digits: int, difference: Tone = "", aligned: Tone = ""
) -> Sequence[Cell]:
    """The cells below `_COLUMNS`."""
    if found is None:
        return [_NO_FIGURE] * len(_COLUMNS)
    blind = found.get("blind_hits", math.nan)
    return [
        Cell(f"{found['own_bits_per_byte']:.{digits}f}"),
        Cell(f"{found['aligned_bits_per_byte']:.{digits}f}", tone=aligned),
        Cell(signed(found["cost"], digits), tone=difference),
        Cell(f"{found['filled_bits_per_byte']:.{digits}f}"),
        Cell(percent(found["hits"])),
        _NO_FIGURE if math.isnan(blind) else Cell(percent(blind)),
    ]


def _by_domain(results: Mapping[str, Any]) -> list[Table]:
    """One table per method: every domain's sources below each other, the target's own row with them."""
    tables = []
    beside = standings(results)
    for method, by_source in results["fidelity"].items():
        rows: list[list[Cell]] = []
        for domain in sorted({domain for figures in by_source.values() for domain in figures} - {""}):
            for source, figures in by_source.items():
                judged = beside[method].get(source)
                tone: Tone = "worse" if judged and domain in judged.worse else ""
                rows.append([Cell(domain, source), *_figures(figures.get(domain), 3, aligned=tone)])
        tables.append(Table(f"By domain, aligned by {method}", ["Domain (source)", *_COLUMNS], rows, folded=True))
    return tables


def _calibration(results: Mapping[str, Any]) -> Table:
    found = results["calibration"]
    rows: list[list[Cell]] = []
    for source in dict.fromkeys(source for by_source in found.values() for source in by_source):
        by_method = {method: of[source] for method, of in found.items() if source in of}
        own = next(iter(by_method.values()))["own"]
        if source == results["target"]:
            rows.insert(0, _ratios(source, "itself", own))
            continue
        rows.append(_ratios(source, "own tokens", own))
        rows += [_ratios(source, method, of["aligned"]) for method, of in by_method.items()]
    lengths = max(len(row) for row in rows) - 1
    header = ["Source", *(f"{size} B" for size in range(1, lengths)), f"{lengths} B and more"]
    return Table("Calibration by token length: mass given over tokens found", header, rows, folded=True)


def _ratios(source: str, of: str, values: Sequence[float | None]) -> list[Cell]:
    return [Cell(source, of), *(_NO_FIGURE if value is None else Cell(f"{value:.2f}") for value in values)]


def _statuses(results: Mapping[str, Any]) -> Table:
    statuses: list[str] = []
    for by_source in results["alignment"].values():
        for shares in by_source.values():
            statuses += [status for status in shares if status not in statuses]
    rows = [
        [Cell(source, method), *(_share(shares.get(status)) for status in statuses)]
        for method, by_source in results["alignment"].items()
        for source, shares in by_source.items()
    ]
    header = ["Source (alignment)", *(status.replace("_", " ") for status in statuses)]
    return Table("Positions by status", header, rows)


def _share(value: Any) -> Cell:
    if value is None:
        return _NO_FIGURE
    return Cell(percent(value) if isinstance(value, int | float) else str(value))
