"""What a search found: every method's best settings, how they compare on test text, and what finding them took."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusionx.contract.files.storage import join, write_bytes
from fusionx.eval.report.pages import finite, markdown_table
from fusionx.eval.report.summary import SUBJECT
from fusionx.eval.report.tables.cells import MISSING, Cell, Table
from fusionx.eval.report.verdict import signed_percent
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.interference import compare
from fusionx.eval.results.over_seeds import INTERVAL_CONFIDENCE, over_seeds
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.study.outcomes import TrainingCourse
from fusionx.pipelines.study.report import write_csv

BASELINE = "ct"


@dataclass(frozen=True)
class Trial:
    """values: field -> value. outcome: None where the training failed. seconds: what it took."""

    values: dict[str, Any]
    outcome: TrainingCourse | None
    seconds: float
    folder: str


@dataclass(frozen=True)
class MethodFinding:
    """A method's trials, the chosen `values`, and what these gave on test text: an evaluation per seed."""

    name: str
    values: dict[str, Any]
    trials: list[Trial]
    evaluations: list[Evaluation]
    seconds: list[float]


def recipe_results(
    config: FusionConfig,
    findings: Sequence[MethodFinding],
    original: Evaluation,
    sources: Sequence[Evaluation],
    corpus: Sequence[str],
) -> dict[str, Any]:
    """Everything that results.json holds.

    Keys: `methods` (per method `chosen`, `trials`, `test`, `worse_than_start`, `seconds`) and `comparison`, of
    `fusionx`, or the last method: `bpb_vs_OTHER` and `perplexity_vs_OTHER` (relative difference on the corpus's
    domains, paired by seed: mean and 95 % interval; perplexity as their geometric mean), `distance_closed` (of the way
    from ct to the best source, summed over the domains in which a source knows more than ct),
    `domains_worse_than_start` (means over seeds).

    Args:
        original: the untrained target's evaluation. sources: may be empty. corpus: domains of the training text.
    """
    by_name = {finding.name: finding for finding in findings}
    subject = by_name.get(SUBJECT, findings[-1])
    domains = sorted(set(corpus) & set(original.domains)) or sorted(original.domains)
    comparison: dict[str, Any] = {"of": subject.name, "seeds": len(config.train.seeds), "hardware": _hardware(original)}
    for other in findings:
        if other is not subject:
            pairs = [*zip(subject.evaluations, other.evaluations, strict=True)]
            for name, figure in (("bpb", _mean), ("perplexity", _perplexity)):
                relative = [figure(ours, domains) / figure(theirs, domains) - 1 for ours, theirs in pairs]
                comparison[f"{name}_vs_{other.name.replace('-', '_')}"] = over_seeds(relative)
    if BASELINE in by_name and sources:
        pairs = [*zip(subject.evaluations, by_name[BASELINE].evaluations, strict=True)]
        closed = [_distance_closed(ours, ct, sources, domains) for ours, ct in pairs]
        comparison["distance_closed"] = over_seeds([share for share in closed if share is not None])
    methods = {finding.name: _method(finding, original, domains, config) for finding in findings}
    comparison["domains_worse_than_start"] = methods[subject.name]["worse_than_start"]
    return {
        "study": "recipe",
        "space": config.recipe.space,
        "trials": config.recipe.trials,
        "seeds": config.train.seeds,
        "original": {"corpus": _mean(original, domains), "domains": _bits(original)},
        "sources": [{"model": source.model, "corpus": _mean(source, domains)} for source in sources],
        "methods": methods,
        "comparison": comparison,
        "config": config.model_dump(mode="json"),
    }


def _method(
    finding: MethodFinding, original: Evaluation, corpus: Sequence[str], config: FusionConfig
) -> dict[str, Any]:
    absent = sorted(set(original.domains) - set(corpus))
    how = {"resamples": config.eval.bootstrap, "confidence": config.eval.confidence}
    worse = [
        [unit for unit in compare(original, found, **how).units if unit.kind == "domain"]  # type: ignore[arg-type]
        for found in finding.evaluations
    ]
    return {
        "chosen": finding.values,
        "at_the_edge": sorted(_at_the_edge(finding)),
        "trials": [
            {
                "values": trial.values,
                "validation": None if trial.outcome is None else trial.outcome.best.corpus,
                "best_step": None if trial.outcome is None else trial.outcome.best.step,
                "seconds": trial.seconds,
                "folder": trial.folder,
            }
            for trial in finding.trials
        ],
        "test": {
            "corpus": over_seeds([_mean(found, corpus) for found in finding.evaluations]),
            "perplexity": over_seeds([_perplexity(found, corpus) for found in finding.evaluations]),
            "absent": over_seeds([_mean(found, absent) for found in finding.evaluations]) if absent else None,
            "domains": {
                name: over_seeds([found.domains[name]["bits_per_byte"] for found in finding.evaluations])
                for name in sorted(original.domains)
            },
        },
        "worse_than_start": {
            "of": len(original.domains),
            "raw": over_seeds([sum(unit.degraded for unit in units) for units in worse]),
            "beyond_noise": over_seeds([sum(unit.degraded_beyond_noise for unit in units) for units in worse]),
        },
        "seconds": {"search": sum(trial.seconds for trial in finding.trials), "final": sum(finding.seconds)},
    }


def _at_the_edge(finding: MethodFinding) -> set[str]:
    """The fields whose chosen value is the least or largest of at least two numbers tried: the best may lie beyond."""
    found = set()
    for field, value in finding.values.items():
        tried = {trial.values[field] for trial in finding.trials if isinstance(trial.values[field], int | float)}
        if len(tried) > 1 and value in (min(tried), max(tried)):
            found.add(field)
    return found


def _distance_closed(
    ours: Evaluation, ct: Evaluation, sources: Sequence[Evaluation], domains: Sequence[str]
) -> float | None:
    """Of the way from ct to the best source; None where no source knows more than ct anywhere."""
    gained = distance = 0.0
    for name in domains:
        start = ct.domains[name]["bits_per_byte"]
        best = min(source.domains[name]["bits_per_byte"] for source in sources)
        if best < start:
            gained += start - ours.domains[name]["bits_per_byte"]
            distance += start - best
    return gained / distance if distance else None


def _mean(evaluation: Evaluation, domains: Sequence[str]) -> float:
    return sum(evaluation.domains[name]["bits_per_byte"] for name in domains) / len(domains)


def _perplexity(evaluation: Evaluation, domains: Sequence[str]) -> float:
    return math.exp(sum(math.log(evaluation.domains[name]["perplexity"]) for name in domains) / len(domains))


def _bits(evaluation: Evaluation) -> dict[str, float]:
    return {name: figures["bits_per_byte"] for name, figures in sorted(evaluation.domains.items())}


def _hardware(evaluation: Evaluation) -> str:
    return f"{evaluation.versions.get('device', 'cpu')}, {platform.machine()}"


def write_recipe(results: Mapping[str, Any], folder: str, writes: bool = True) -> str:
    """Writes table.md, its tables as CSV, and results.json; returns the path of table.md."""
    table = join(folder, "table.md")
    if writes:
        lines = ["# recipe: every method at its own best", ""]
        for made in tables(results):
            lines += [f"**{made.caption}**", "", *markdown_table(made), ""]
        lines += [f"- {note}" for note in _notes(results)]
        write_bytes(table, ("\n".join(lines) + "\n").encode())
        write_csv(tables(results), folder)
        text = json.dumps(finite(dict(results)), indent=1, ensure_ascii=False, allow_nan=False)
        write_bytes(join(folder, "results.json"), (text + "\n").encode())
    return table


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Test text, and every trial."""
    return [_test(results), _trials(results)]


def _test(results: Mapping[str, Any]) -> Table:
    comparison, methods = results["comparison"], results["methods"]
    rows = [[Cell("original target"), Cell(""), Cell(f"{results['original']['corpus']:.4f}"), *[Cell(MISSING)] * 5]]
    lowest = min(found["test"]["corpus"]["mean"] for found in methods.values())
    for name, found in methods.items():
        test, worse = found["test"], found["worse_than_start"]
        against, surprised = (comparison.get(f"{of}_vs_{name.replace('-', '_')}") for of in ("bpb", "perplexity"))
        settings = ", ".join(
            f"{field} {value}{' (edge)' if field in found['at_the_edge'] else ''}"
            for field, value in found["chosen"].items()
        )
        rows.append(
            [
                Cell(name),
                Cell(settings),
                Cell(_over(test["corpus"], 4), tone="best" if test["corpus"]["mean"] == lowest else ""),
                *(
                    Cell(MISSING if less is None else signed_percent(less["mean"], 1) + _half(less, 1, 100))
                    for less in (against, surprised)
                ),
                Cell(MISSING if test["absent"] is None else _over(test["absent"], 4)),
                Cell(f"{worse['raw']['mean']:.1f} ({worse['beyond_noise']['mean']:.1f}) of {worse['of']}"),
                Cell(f"{found['seconds']['search']:,.0f} + {found['seconds']['final']:,.0f}"),
            ]
        )
    header = [
        "Method",
        "Chosen",
        "Test, corpus",
        f"{comparison['of']} against it",
        "in perplexity",
        "Test, absent",
        "Worse than the start (beyond noise)",
        "Seconds: search + seeds",
    ]
    return Table("Test text, bits per byte, each method at the settings chosen on validation text", header, rows)


def _trials(results: Mapping[str, Any]) -> Table:
    fields = list(results["space"])
    rows = []
    for name, found in results["methods"].items():
        for trial in sorted(found["trials"], key=lambda one: (one["validation"] is None, one["validation"])):
            said = trial["validation"]
            value = Cell("failed", tone="worse") if said is None else Cell(f"{said:.4f}")
            rows.append([Cell(name), *(Cell(str(trial["values"].get(field, MISSING))) for field in fields), value])
    return Table("Every trial, validation bits per byte at its best step", ["Method", *fields, "Corpus"], rows)


def _notes(results: Mapping[str, Any]) -> list[str]:
    seeds, closed = len(results["seeds"]), results["comparison"].get("distance_closed")
    said = [
        f"Every method has {results['trials']} trials, or as many as its part of the space has points, with the first "
        "seed. What is chosen is what is lowest on validation text; the test text has no say in it.",
        f"± is half of the {100 * INTERVAL_CONFIDENCE:g} % confidence interval of the mean over {seeds} seeds (t); "
        "differences are paired by seed."
        if seeds > 1
        else "One seed: nothing here tells a difference from chance.",
        "“edge”: the least or the largest value that was tried.",
    ]
    if closed is not None:
        said.append(
            f"{results['comparison']['of']} closes {100 * closed['mean']:.0f} %{_half(closed, 0, 100)} of the distance "
            "from ct to the best source, over the domains in which a source knows more than ct."
        )
    return said


def _over(found: Mapping[str, Any], digits: int) -> str:
    return f"{found['mean']:.{digits}f}{_half(found, digits)}"


def _half(found: Mapping[str, Any], digits: int, scale: float = 1) -> str:
    interval = found["ci95"]
    return "" if interval is None else f" ± {scale * (interval[1] - interval[0]) / 2:.{digits}f}"
