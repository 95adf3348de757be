"""The knowledge-interference report of any evaluated models: results, tables, page and terminal text.

The numbers of one model come from `eval.report.summary`, as in a run's report, so that both reports say the same of the
same evaluations. Which files hold the evaluations is the caller's matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fusionx.contract.files.escaping import visible
from fusionx.eval.report.answers import Card
from fusionx.eval.report.figures.plots import Plot, change_points
from fusionx.eval.report.inputs import TARGET, Step, method_label
from fusionx.eval.report.pages import write_pages
from fusionx.eval.report.summary import ONE_SEED, SUBJECT
from fusionx.eval.report.tables.cells import MISSING, Cell, Section, Table
from fusionx.eval.report.tables.methods import LOSS_HEADER, loss_cells, loss_notes
from fusionx.eval.report.tables.units import baseline_cell, unit_cell
from fusionx.eval.report.terminal import padded
from fusionx.eval.report.verdict import number
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.interference import METHOD_NOTE, compare
from fusionx.eval.results.over_seeds import INTERVAL_CONFIDENCE, interference_over_seeds, over_seeds
from fusionx.eval.results.statistics import t_interval

FORMAT_VERSION = 1
COUNTS = {"raw": "degraded", "beyond_noise": "degraded_beyond_noise"}
"""Names of the two counts of worse units, and what `Interference.summary` calls them."""


@dataclass(frozen=True)
class EvaluatedModel:
    """Seed -> evaluation of one model; the evaluations' `model` is where each was read from."""

    name: str
    seeds: dict[int, Evaluation]


@dataclass(frozen=True)
class InterferenceInputs:
    """Everything the report says.

    Attributes:
        original: the target before any training; every one of `models` is compared with it.
        ct, fusellm: which of `models` is plain continued training, and which is FuseLLM; None without one.
        bootstrap: resamples behind "beyond noise"; `confidence` is its level.
        command: what reproduces the report.
    """

    original_name: str
    original: Evaluation
    models: list[EvaluatedModel]
    step: Step = "best"
    ct: str | None = None
    fusellm: str | None = None
    bootstrap: int = 2000
    confidence: float = 0.95
    command: str = "fusionx report interference"


def interference_results(inputs: InterferenceInputs) -> dict[str, Any]:
    """Every number of the report, and its sentences.

    Keys: `interference` (model -> step -> as in a run's results.json), `counts` (model -> `raw` and `beyond_noise` ->
    mean, ci95, per_seed), `ratio_to_fusellm` (model -> `raw` and `beyond_noise` -> `ratio_of_means`; empty without
    FuseLLM), `verdict`, `methods`, `baseline`, `judging`, `provenance`, `config`.

    Raises:
        DataError: evaluations are of different data, settings, prompts or precision.
    """
    interference = {model.name: {inputs.step: _of_model(inputs, model)} for model in inputs.models}
    per_seed = {
        name: {count: _per_seed(found[inputs.step], key) for count, key in COUNTS.items()}
        for name, found in interference.items()
    }
    fusellm = {} if inputs.fusellm is None else per_seed[inputs.fusellm]
    ratios = {
        name: {count: ratio_of_means(of[count], divisor) for count, divisor in fusellm.items()}
        for name, of in per_seed.items()
        if fusellm and name != inputs.fusellm
    }
    files = {
        model.name: {str(seed): found.model for seed, found in sorted(model.seeds.items())} for model in inputs.models
    }
    results = {
        "format": FORMAT_VERSION,
        "title": f"Knowledge interference against {_in_sentence(inputs.original_name)}",
        "baseline": inputs.original_name,
        "step": inputs.step,
        "methods": {
            model.name: {"label": method_label(model.name), "seeds": sorted(model.seeds)} for model in inputs.models
        },
        "interference": interference,
        "counts": {
            name: {count: over_seeds(list(seeds.values())) for count, seeds in of.items()}
            for name, of in per_seed.items()
        },
        "ratio_to_fusellm": ratios,
        "judging": {"note": METHOD_NOTE, "bootstrap": inputs.bootstrap, "confidence": inputs.confidence},
        "provenance": {
            "baseline": inputs.original.model,
            "models": files,
            "data_digest": inputs.original.data_digest,
            "config_digest": inputs.original.config_digest,
            "dtype": inputs.original.versions.get("dtype", ""),
        },
        "config": {
            "step": inputs.step, "ct": inputs.ct, "fusellm": inputs.fusellm,
            "bootstrap": inputs.bootstrap, "confidence": inputs.confidence,
        },
        "command": inputs.command,
    }  # fmt: skip
    return {**results, "verdict": _sentences(results)}


def _of_model(inputs: InterferenceInputs, model: EvaluatedModel) -> dict[str, Any]:
    judge = partial(compare, resamples=inputs.bootstrap, confidence=inputs.confidence)
    ct = next((other for other in inputs.models if other.name == inputs.ct and other is not model), None)
    paired = {} if ct is None else paired_seeds(model.seeds, ct.seeds)
    return interference_over_seeds(inputs.original, dict(sorted(model.seeds.items())), paired, [], judge)


def paired_seeds(own: Mapping[int, Evaluation], others: Mapping[int, Evaluation]) -> dict[int, Evaluation]:
    """For each seed of `own` the other model's evaluation of the same seed.

    Where either has one seed only, the other's first stands in for a seed that it lacks; else such a seed is left out.
    """
    first = others[min(others)]
    stands_in = len(own) == 1 or len(others) == 1
    return {seed: others.get(seed, first) for seed in sorted(own) if seed in others or stands_in}


def _per_seed(found: Mapping[str, Any], key: str) -> dict[str, float]:
    """Seed -> count."""
    return {seed: summary[key] for seed, summary in found["per_seed"].items()}


def ratio_of_means(own: Mapping[str, float], other: Mapping[str, float]) -> dict[str, Any] | None:
    """Mean count of one model over that of another, with a 95 % interval over seeds.

    The interval is Student's t over the seeds' linearised ratios, r + (x - r * y) / mean(y), whose mean is r (the delta
    method; Cochran, Sampling Techniques, 3rd ed., section 6.3). It needs two seeds, and the same ones of both.

    Args:
        own, other: seed -> count.

    Returns:
        `mean` and `ci95` (None without an interval); None where the other model's counts are all 0.
    """
    means = [sum(counts.values()) / len(counts) for counts in (own, other)]
    if not means[1]:
        return None
    ratio = means[0] / means[1]
    paired = (
        [ratio + (own[seed] - ratio * other[seed]) / means[1] for seed in own] if own.keys() == other.keys() else []
    )
    return {"mean": ratio, "ci95": t_interval(paired, INTERVAL_CONFIDENCE)}


def _sentences(results: Mapping[str, Any]) -> list[str]:
    """The first one carries the answer."""
    step, counts = results["step"], results["counts"]
    units = next(iter(results["interference"].values()))[step]["mean"]["units"]
    told = "; ".join(
        f"{number(found['raw']['mean'])} under {method_label(name)} ("
        f"{_interval(found['raw'], '95 %: ', '; ')}{number(found['beyond_noise']['mean'])} beyond noise)"
        for name, found in counts.items()
    )
    sentences = [f"Of {number(units)} domains and skills, worse than {_in_sentence(results['baseline'])}: {told}."]
    ratios = "; ".join(
        f"{method_label(name)} {found['raw']['mean']:.2f}{_interval(found['raw'], ' (95 %: ', ')', 2)}"
        for name, found in results["ratio_to_fusellm"].items()
        if found["raw"] is not None
    )
    if ratios:
        fusellm = method_label(results["config"]["fusellm"])
        sentences.append(f"Number of worse domains and skills as a multiple of that under {fusellm}: {ratios}.")
    if any(len(method["seeds"]) == 1 for method in results["methods"].values()):
        sentences.append(ONE_SEED)
    return sentences


def _in_sentence(baseline: str) -> str:
    return "the original target" if baseline == TARGET else baseline


def _interval(found: Mapping[str, Any], before: str = "", after: str = "", digits: int = 1) -> str:
    """Nothing where there is no interval."""
    if found["ci95"] is None:
        return ""
    low, high = (f"{value:.{digits}f}".replace("-", "−") for value in found["ci95"])
    return f"{before}{low} to {high}{after}"


def interference_sections(results: Mapping[str, Any]) -> list[Section]:
    """The counts and losses of every model, and every unit under every model."""
    judging = results["judging"]
    notes = [
        *loss_notes(results),
        f"Confidence {judging['confidence']:g}, {judging['bootstrap']} resamples. Intervals are 95 % t intervals over "
        "seeds, where there are two or more; that of a ratio is linearised, where both models have the same seeds. One "
        "of no width says that all seeds gave the same count.",
    ]
    units = [
        "Bits per byte of a domain and share of items right of a skill, and the change: relative for a domain, in "
        "points for a skill, whose 95 % interval over its items stands behind it. Means over seeds. Red or ▲: worse "
        "beyond noise in at least half of the seeds."
    ]
    return [
        Section("interference", "Knowledge interference", notes, [_models_table(results)]),
        Section("units", "Every domain and skill", units, [_units_table(results)]),
    ]


def _models_table(results: Mapping[str, Any]) -> Table:
    step, roles = results["step"], results["config"]
    header = ["Model", *LOSS_HEADER]
    if roles["ct"]:
        header.append(f"Worse than {method_label(roles['ct'])}")
    if roles["fusellm"]:
        header.append(f"Worse, ratio to {method_label(roles['fusellm'])}")
    rows = []
    for name, method in results["methods"].items():
        found, counts = results["interference"][name][step], results["counts"][name]
        worse, beyond, *losses = loss_cells(found)
        seeds = len(method["seeds"])
        row = [
            Cell(method["label"], f"{seeds} seed{'s' if seeds > 1 else ''}"),
            Cell(worse.text, worse.detail + _interval(counts["raw"], "; 95 %: ")),
            Cell(beyond.text, beyond.detail + _interval(counts["beyond_noise"], "; 95 %: ")),
            *losses,
        ]
        if roles["ct"]:
            row.append(_ct_cell(found["vs_ct_mean"]))
        if roles["fusellm"]:
            row.append(_ratio_cell(results["ratio_to_fusellm"].get(name)))
        rows.append(row)
    caption = f"Domains and skills that got worse than {_in_sentence(results['baseline'])}"
    return Table(caption, header, rows, emphasis=method_label(SUBJECT))


def _ct_cell(counts: Mapping[str, float] | None) -> Cell:
    if counts is None:
        return Cell(MISSING, tone="muted")
    return Cell(number(counts["degraded"]), f"{number(counts['degraded_beyond_noise'])} beyond noise")


def _ratio_cell(ratios: Mapping[str, Any] | None) -> Cell:
    if ratios is None or ratios["raw"] is None:
        return Cell(MISSING, tone="muted")
    told = [_interval(ratios["raw"], "95 %: ", digits=2)]
    if ratios["beyond_noise"] is not None:
        told.append(f"{ratios['beyond_noise']['mean']:.2f} beyond noise")
    return Cell(f"{ratios['raw']['mean']:.2f}", "; ".join(filter(None, told)))


def _units_table(results: Mapping[str, Any]) -> Table:
    """Rows by the largest loss under any model, the worst first."""
    step = results["step"]
    by_model = {
        name: {(unit["kind"], unit["name"]): unit for unit in found[step]["units"]}
        for name, found in results["interference"].items()
    }
    first = next(iter(by_model.values()))
    keys = sorted(first, key=lambda key: (-max(units[key]["loss"] for units in by_model.values()), key))
    rows = []
    for key in keys:
        kind, name = key
        cells = [unit_cell(units[key]) for units in by_model.values()]
        rows.append([Cell(name, "skill" if kind == "task" else ""), baseline_cell(first[key]), *cells])
    header = ["Domain or skill", *(method_label(name) for name in (results["baseline"], *by_model))]
    return Table("Largest loss under any model first", header, rows)


def write_interference(results: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Writes `interference.json`, `interference.md`, `plots/*.svg` and the self-contained `interference.html`.

    Returns:
        The content of interference.json.
    """
    figures = [_figure(results, kind) for kind in ("domain", "task")]
    drawn = [figure for figure in figures if figure is not None]
    return write_pages(
        folder, "interference", "interference", results, interference_sections(results), drawn, _cards(results)
    )


def _figure(results: Mapping[str, Any], kind: str) -> Plot | None:
    return change_points(results, kind, results["step"], "units", _in_sentence(results["baseline"]))


def _cards(results: Mapping[str, Any]) -> list[Card]:
    """Per model: how many units got worse."""
    made = []
    for name, counts in results["counts"].items():
        mean = results["interference"][name][results["step"]]["mean"]
        ratio = results["ratio_to_fusellm"].get(name, {}).get("raw")
        told = [f"{number(counts['beyond_noise']['mean'])} beyond noise"]
        if ratio is not None:
            told.append(f"{ratio['mean']:.2f} times {method_label(results['config']['fusellm'])}'s count")
        value = f"{number(mean['degraded'])} of {number(mean['units'])}"
        made.append(Card(f"Under {method_label(name)}", value, "domains and skills worse", told))
    return made


def terminal_text(results: Mapping[str, Any]) -> str:
    """The sentences, and the tables as Markdown with columns of even width."""
    lines = [f"# {results['title']}", "", *(line for sentence in results["verdict"] for line in (sentence, ""))]
    for part in interference_sections(results):
        lines += [f"## {part.heading}", ""]
        for table in part.tables:
            lines += [f"**{table.caption}**", "", *padded(table), ""]
        lines += [line for note in part.notes for line in (note, "")]
    return visible("\n".join(lines).rstrip())
