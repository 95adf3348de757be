"""Which model a run recommends: the one with the fewest bits per byte on validation text. Test text has no say.

The trained methods and the unchanged target compete; what the sources have alone is told beside them. A method is
judged by the mean over its seeds, and of its models the best stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fusionx.eval.results.interference import unit_seed
from fusionx.eval.results.statistics import (
    MIN_DOCUMENTS,
    bits_per_byte,
    paired_bootstrap_of_domains,
    percentile_interval,
)

Documents = Mapping[str, Sequence[Sequence[float]]]
"""Domain -> [nats, bytes] of every document, in the order of their ids."""


@dataclass(frozen=True)
class Contender:
    """A model on validation text: the `target` unchanged, one seed of a `method` at its best step, or a `source`."""

    kind: Literal["target", "method", "source"]
    name: str
    documents: Documents
    seed: int | None = None


def recommend(
    contenders: Sequence[Contender], domains: Sequence[str], *, resamples: int = 2000, confidence: float = 0.95
) -> dict[str, Any]:
    """The choice among the contenders, of which one is the target, with the figures that it rests on, as plain values.

    Args:
        domains: of the validation text, those that count: all have the same weight.

    Returns:
        `kind`, `name`, `seed` and `bits_per_byte` of the chosen model (of equal ones the target, then the first);
        `vs_target`: its relative difference (`mean`, and `interval` by a paired bootstrap over documents; None where
        there are fewer than 2 of a domain or 5 in all), None if it is the target; `best_source`: `name`,
        `bits_per_byte` and `vs_model`, None without sources; `runner_up`: `kind`, `name` and `bits_per_byte` of the
        best other one of target and methods;
        `all`: bits per byte of the `target`, of every method (`mean`, `per_seed`) and source; `domains`, `confidence`.
    """
    bits = {(of.kind, of.name, of.seed): _bits(of, domains) for of in contenders}
    (target,) = (of for of in contenders if of.kind == "target")
    methods: dict[str, list[Contender]] = {}
    for of in contenders:
        if of.kind == "method":
            methods.setdefault(of.name, []).append(of)

    def own(of: Contender) -> float:
        return bits[of.kind, of.name, of.seed]

    means = {name: math.fsum(map(own, models)) / len(models) for name, models in methods.items()}
    ranked = sorted([(own(target), target), *((mean, min(methods[name], key=own)) for name, mean in means.items())],
                    key=lambda pair: pair[0])  # fmt: skip
    (_, chosen), *others = ranked
    sources = sorted((of for of in contenders if of.kind == "source"), key=own)

    def against(model: Contender, baseline: Contender) -> dict[str, Any]:
        return relative_change(model.documents, baseline.documents, domains, resamples, confidence)

    return {
        "kind": chosen.kind,
        "name": chosen.name,
        "seed": chosen.seed,
        "bits_per_byte": own(chosen),
        "vs_target": None if chosen is target else against(chosen, target),
        "best_source": None
        if not sources
        else {
            "name": sources[0].name,
            "bits_per_byte": own(sources[0]),
            "vs_model": against(sources[0], chosen),
        },
        "runner_up": None
        if not others
        else {"kind": others[0][1].kind, "name": others[0][1].name, "bits_per_byte": others[0][0]},
        "all": {
            "target": own(target),
            "methods": {
                name: {"mean": means[name], "per_seed": {str(of.seed): own(of) for of in models}}
                for name, models in methods.items()
            },
            "sources": {of.name: own(of) for of in sources},
        },
        "domains": list(domains),
        "confidence": confidence,
    }


def _bits(of: Contender, domains: Sequence[str]) -> float:
    return _mean_bits([_sums(of.documents, name) for name in domains])


def _mean_bits(domains: Sequence[npt.NDArray[np.float64]]) -> float:
    """Mean over domains of bits per byte."""
    return math.fsum(float(bits_per_byte(rows.sum(axis=0))) for rows in domains) / len(domains)


def _sums(documents: Documents, domain: str) -> npt.NDArray[np.float64]:
    return np.array(documents[domain], np.float64).reshape(-1, 2)


def relative_change(
    model: Documents, baseline: Documents, domains: Sequence[str], resamples: int, confidence: float
) -> dict[str, Any]:
    """`mean`: the relative difference in bits per byte, all domains with the same weight; `interval`: of that by a
    paired bootstrap over documents, None where there are fewer than 2 of a domain or 5 in all.
    """
    before, after = ([_sums(of, name) for name in domains] for of in (baseline, model))
    change = _mean_bits(after) / _mean_bits(before) - 1
    counts = [len(rows) for rows in before]
    if min(counts) < 2 or sum(counts) < MIN_DOCUMENTS:
        return {"mean": change, "interval": None}
    drawn = paired_bootstrap_of_domains(before, after, resamples, [unit_seed(name, 0) for name in domains])
    return {"mean": change, "interval": percentile_interval(drawn, confidence)}
