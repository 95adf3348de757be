"""The trained methods: results per group, domain and skill, what got worse, and what was selected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fusionx.eval.report.inputs import STEPS, TARGET, Step, method_label
from fusionx.eval.report.summary import GROUPS, SUBJECT, claim_group
from fusionx.eval.report.tables.cells import MISSING, Cell, Section, Table, percent
from fusionx.eval.report.tables.units import STEP_WORDS, interval_text
from fusionx.eval.report.verdict import number, signed_percent
from fusionx.eval.results.task_scores import ALL


def overview(results: Mapping[str, Any]) -> Section:
    notes = [
        "Bits per byte and perplexity on held-out text: lower is better. Every domain counts the same; perplexity is "
        "the geometric mean over domains, per token of the target's tokenizer. “Worse than” counts domains and skills: "
        "first by the raw number, then those that chance does not explain.",
        _best_step_note(results),
        "± is the standard deviation over seeds." if _many_seeds(results) else "One seed per method: no spread.",
    ]
    if results["tasks"]["groups"]:
        notes[-1] += " Behind the share of skills right stands its 95 % interval over the items."
    return Section("overview", "How it went", notes, [_headline(results, "best"), _headline(results, "last")])


def _best_step_note(results: Mapping[str, Any]) -> str:
    if claim_group(results["domains"]["corpus"]) == "all":
        return "A method's best step is the one with the lowest bits per byte on the validation text."
    return (
        "A method's best step is chosen on validation text of the corpus's own domains only, as someone would who has "
        "no text of anything else; no absent domain and no skill has a say in it."
    )


def _many_seeds(results: Mapping[str, Any]) -> bool:
    return any(method["spread"]["best"] is not None for method in results["methods"].values())


def _headline(results: Mapping[str, Any], step: Step) -> Table:
    groups = [group for group in GROUPS if results["domains"][group]]
    titles = {"corpus": "Corpus domains, bits/byte", "absent": "Absent domains, bits/byte", "all": "All, bits/byte"}
    has_skills = results["methods"][TARGET]["mean"][step]["skill_accuracy"] is not None
    columns: list[tuple[str, Callable[[str], Cell]]] = [
        (titles[group], _figure_column(results, step, group, "bits_per_byte", 4)) for group in groups
    ]
    claim = claim_group(results["domains"]["corpus"])
    perplexity = "Corpus domains, perplexity" if claim == "corpus" else "Perplexity"
    columns.append((perplexity, _figure_column(results, step, claim, "perplexity", 2)))
    if has_skills:
        columns.append(("Skills right", lambda method: _skill_cell(results, method, step)))
    units = next((found[step]["mean"]["units"] for found in results["interference"].values()), None)
    if units is not None:
        columns.append((f"Worse than target, of {number(units)}", lambda m: _counts_cell(results, m, step, "mean")))
        columns.append((f"Worse than ct, of {number(units)}", lambda m: _counts_cell(results, m, step, "vs_ct_mean")))
    rows = [
        [Cell(method_label(method), _run_text(results, method, step)), *(make(method) for _, make in columns)]
        for method in results["methods"]
    ]
    caption = f"All methods {STEP_WORDS[step]}"
    header = ["Method", *(title for title, _ in columns)]
    return Table(caption, header, rows, emphasis=method_label(SUBJECT), folded=step == "last")


def _run_text(results: Mapping[str, Any], method: str, step: Step) -> str:
    """How many seeds, and their steps: "3 seeds, steps 160–200"."""
    runs = results["methods"][method]["per_seed"].values()
    if not runs:
        return ""
    steps = sorted({run[step]["step"] for run in runs})
    where = f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,}–{steps[-1]:,}"
    return f"{len(runs)} seed{'s' if len(runs) > 1 else ''}, {where}"


def _figure_column(
    results: Mapping[str, Any], step: Step, group: str, metric: str, digits: int
) -> Callable[[str], Cell]:
    methods = results["methods"]
    values = {name: method["mean"][step]["groups"][group][metric] for name, method in methods.items()}
    best = min(values.values())

    def make(method: str) -> Cell:
        spread = methods[method]["spread"][step]
        detail = f"±{spread['groups'][group][metric]:.{digits}f}" if spread else ""
        return Cell(f"{values[method]:.{digits}f}", detail, "best" if values[method] == best else "")

    return make


def _skill_cell(results: Mapping[str, Any], method: str, step: Step) -> Cell:
    value = results["methods"][method]["mean"][step]["skill_accuracy"]
    spread = results["methods"][method]["spread"][step]
    if value is None:
        return Cell(MISSING, tone="muted")
    tasks = results["tasks"]
    of_items = (tasks["models"][TARGET] if method == TARGET else tasks["methods"][method][step])["groups"][ALL]
    details = [interval_text(of_items["interval"], share=True)]
    if spread:
        details.insert(0, f"±{spread['skill_accuracy'] * 100:.1f}")
    return Cell(percent(value), "; ".join(details))


def _counts_cell(results: Mapping[str, Any], method: str, step: Step, key: str) -> Cell:
    counts = results["interference"].get(method, {}).get(step, {}).get(key)
    if counts is None:
        return Cell(MISSING, tone="muted")
    return Cell(number(counts["degraded"]), f"{number(counts['degraded_beyond_noise'])} beyond noise")


def interference(results: Mapping[str, Any]) -> Section | None:
    if not results["interference"]:
        return None
    tables = []
    for step in STEPS:
        rows = [
            [Cell(method_label(method)), *loss_cells(found[step])] for method, found in results["interference"].items()
        ]
        caption = f"Domains and skills that got worse than the original target, {STEP_WORDS[step]}"
        header = ["Method", *LOSS_HEADER]
        tables.append(Table(caption, header, rows, emphasis=method_label(SUBJECT), folded=step == "last"))
    return Section("interference", "Knowledge interference", loss_notes(results), tables, behind=True)


LOSS_HEADER = ("Worse", "Beyond noise", "Mean loss of the worse ones", "Mean loss of all", "Worst loss")


def loss_cells(found: Mapping[str, Any]) -> list[Cell]:
    """A model's cells under `LOSS_HEADER`; `found` is what `summary.interference_over_seeds` tells of it."""
    mean, units = found["mean"], found["units"]
    worst = max(units, key=lambda unit: unit["loss"], default=None)
    return [
        Cell(f"{number(mean['degraded'])} of {number(mean['units'])}", percent(mean["degraded_share"], 0)),
        Cell(number(mean["degraded_beyond_noise"]), percent(mean["degraded_beyond_noise_share"], 0)),
        Cell(percent(mean["mean_loss_of_degraded"])),
        Cell(signed_percent(mean["mean_loss"])),
        Cell(percent(mean["worst_loss"]), worst["name"] if worst and worst["loss"] > 0 else ""),
    ]


def loss_notes(results: Mapping[str, Any]) -> list[str]:
    """How the figures under `LOSS_HEADER` are to be read."""
    return [
        results["judging"]["note"],
        "A loss is relative bits per byte for a domain and points of accuracy for a skill; a negative loss is a gain. "
        "Counts and losses are means over seeds.",
    ]


def selection(results: Mapping[str, Any]) -> Section | None:
    if not results["selection"]:
        return None
    tables = []
    for method, found in results["selection"].items():
        ids = list(found["mean"])
        absent = results["domains"]["absent"]
        rows = [
            [Cell(domain, "absent" if domain in absent else ""), *(Cell(percent(shares[name], 0)) for name in ids)]
            for domain, shares in found["domains"].items()
        ]
        rows.append([Cell("Mean"), *(Cell(percent(found["mean"][name], 0)) for name in ids)])
        tables.append(Table(f"{method_label(method)}: fusion weight by domain", ["Domain", *ids], rows, folded=True))
    notes = ["How the teacher shares its weight among the candidates: mean fusion weight per position."]
    return Section("selection", "Whom the target listened to", notes, tables)
