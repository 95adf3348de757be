"""Which sources know less than the target: each is judged beside it on the same text, aligned by the same method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

Figures = Mapping[str, Mapping[str, float]]
"""Domain ("" for all together) -> figures, at least `aligned_bits_per_byte`."""


class Rank(IntEnum):
    """How bad it is."""

    BETTER_EVERYWHERE = 0
    WORSE_SOMEWHERE = 1
    KNOWS_LESS = 2
    CANNOT_TEACH = 3


@dataclass(frozen=True)
class Standing:
    """A source beside the target: bits per byte of the target's next tokens over all domains, and the domains that the
    source predicts better and worse than the target does, the largest difference first."""

    source: float
    target: float
    better: list[str]
    worse: list[str]
    domains: int

    @property
    def rank(self) -> Rank:
        if not self.better:
            return Rank.CANNOT_TEACH
        if self.source > self.target:
            return Rank.KNOWS_LESS
        return Rank.WORSE_SOMEWHERE if self.worse else Rank.BETTER_EVERYWHERE

    def bits(self) -> str:
        """ "2.79 against 2.42", with more digits where two would show no difference."""
        texts = [[f"{value:.{digits}f}" for value in (self.source, self.target)] for digits in (2, 4)]
        return " against ".join(texts[0] if texts[0][0] != texts[0][1] else texts[1])

    def remarks(self) -> list[str]:
        """In few words what there is to warn of."""
        words = ["knows less than the target"] if self.source > self.target else []
        return [*words, "cannot teach"] if self.rank is Rank.CANNOT_TEACH else words


def standing(source: Figures, target: Figures) -> Standing | None:
    """None where either of them has no figures."""
    if "" not in source or "" not in target:
        return None
    gaps = {
        domain: source[domain]["aligned_bits_per_byte"] - target[domain]["aligned_bits_per_byte"]
        for domain in source
        if domain and domain in target
    }
    by_size = sorted(gaps, key=lambda domain: (-abs(gaps[domain]), domain))
    better, worse = [name for name in by_size if gaps[name] < 0], [name for name in by_size if gaps[name] > 0]
    overall = [of[""]["aligned_bits_per_byte"] for of in (source, target)]
    return Standing(overall[0], overall[1], better, worse, len(gaps))


def standings(results: Mapping[str, Any]) -> dict[str, dict[str, Standing]]:
    """Method -> source, but for the target itself; only what can be compared."""
    found: dict[str, dict[str, Standing]] = {}
    for method, by_source in results["fidelity"].items():
        target = by_source.get(results["target"], {})
        judged = {id: standing(figures, target) for id, figures in by_source.items() if id != results["target"]}
        found[method] = {id: beside for id, beside in judged.items() if beside is not None}
    return found


def warnings(results: Mapping[str, Any]) -> list[str]:
    """One sentence or two per source that knows less than the target somewhere, as the first method aligns it; then
    those that come off worse by another method."""
    found = standings(results)
    if not found:
        return []
    first, *others = found
    said = [_sentence(source, beside) for source, beside in found[first].items() if beside.rank]
    return said + _worse_by_others(found[first], {method: found[method] for method in others})


def _sentence(source: str, beside: Standing) -> str:
    if beside.rank is Rank.CANNOT_TEACH:
        return f"{source} is better than the target in no domain: {beside.bits()} bits per byte; it cannot teach."
    where = f"in {len(beside.worse)} of {beside.domains} domains: {', '.join(beside.worse)}."
    if beside.rank is Rank.KNOWS_LESS:
        opening = f"{source} knows this text worse than the target: {beside.bits()} bits per byte"
        return f"{opening}; it can teach little here. It is worse {where}"
    return f"{source} knows this text better than the target ({beside.bits()} bits per byte), but worse {where}"


def _worse_by_others(first: Mapping[str, Standing], others: Mapping[str, Mapping[str, Standing]]) -> list[str]:
    """Of the sources that another method turns into ones that know less, or cannot teach."""
    fallen: dict[tuple[str, Rank], dict[str, Standing]] = {}
    for method, by_source in others.items():
        for source, beside in by_source.items():
            before = first[source].rank if source in first else Rank.BETTER_EVERYWHERE
            if beside.rank > max(before, Rank.WORSE_SOMEWHERE):
                fallen.setdefault((source, beside.rank), {})[method] = beside
    sentences = []
    for (source, rank), by_method in fallen.items():
        several = len(by_method) > 1
        bits = ", ".join(of.bits() + (f" ({method})" if several else "") for method, of in by_method.items())
        how = f"Aligned by {' or '.join(by_method)}, {source} is"
        if rank is Rank.CANNOT_TEACH:
            sentences.append(f"{how} better than the target in no domain: {bits} bits per byte; so it cannot teach.")
        else:
            sentences.append(f"{how} worse than the target: {bits} bits per byte; so it can teach little.")
    return sentences
