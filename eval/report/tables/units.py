"""Every domain and every skill: figures, intervals, and the change against the original target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusionx.eval.report.inputs import STEPS, TARGET, Step, method_label
from fusionx.eval.report.summary import SUBJECT
from fusionx.eval.report.tables.cells import MISSING, Cell, Section, Table, Tone, percent
from fusionx.eval.report.verdict import signed_percent
from fusionx.eval.results.task_scores import ALL

STEP_WORDS = {"best": "at each method's best step", "last": "at the last step"}


def per_domain(results: Mapping[str, Any]) -> Section:
    notes = [
        "Bits per byte per domain, and the change against the original target. Domains marked “absent” are not in the "
        "continual corpus: what is lost there is forgotten knowledge. Red: worse than the original target beyond noise "
        "in at least half of the seeds."
    ]
    tables = [_unit_table(results, "domain", step) for step in STEPS]
    return Section("domains", "Every domain", notes, tables, behind=True)


def skills(results: Mapping[str, Any]) -> Section | None:
    if not results["tasks"]["tasks"]:
        return None
    notes = [
        "Share of items answered exactly right, greedily decoded (of a benchmark with choices: where the likeliest one "
        "is right), with its 95 % interval over the items (Wilson's; of several seeds that of their mean), and the "
        "change in points. Of a skill that is measured otherwise the metric stands beside its name, and the change is "
        "relative. Every task of a group counts the same.",
    ]
    return Section(
        "skills",
        "Every skill",
        notes,
        [*(_unit_table(results, "task", step) for step in STEPS), _scores(results)],
        behind=True,
    )


def _unit_table(results: Mapping[str, Any], kind: str, step: Step) -> Table:
    methods = sorted((method for method in results["methods"] if method != TARGET), key=lambda m: m != SUBJECT)
    by_method = {
        method: {unit["name"]: unit for unit in results["interference"][method][step]["units"] if unit["kind"] == kind}
        for method in methods
    }
    absent = results["domains"]["absent"] if kind == "domain" else []
    start = results["methods"][TARGET]["mean"][step]["domains" if kind == "domain" else "tasks"]
    rows = []
    for name in sorted(start, key=lambda name: (name in absent, name)):
        detail = _task_detail(results, name) if kind == "task" else "absent" if name in absent else ""
        cells = [unit_cell(by_method[method][name]) for method in methods]
        first = Cell(f"{start[name]['bits_per_byte']:.4f}") if kind == "domain" else _target_cell(results, name)
        rows.append([Cell(name, detail), first, *cells])
    header = ["Domain" if kind == "domain" else "Skill", *(method_label(method) for method in [TARGET, *methods])]
    caption = f"{'Bits per byte' if kind == 'domain' else 'Accuracy'} {STEP_WORDS[step]}"
    return Table(caption, header, rows, folded=step == "last")


def _task_detail(results: Mapping[str, Any], name: str) -> str:
    about = results["tasks"]["tasks"][name]
    return f"{about['n']} items" if about["share"] else f"{about['metric']}, {about['n']} items"


def _target_cell(results: Mapping[str, Any], name: str) -> Cell:
    return score_cell(results["tasks"]["models"][TARGET]["tasks"][name], results["tasks"]["tasks"][name]["share"])


def _scores(results: Mapping[str, Any]) -> Table:
    """Target, sources and methods side by side, groups of tasks first."""
    tasks = results["tasks"]
    columns = {method_label(name): found for name, found in tasks["models"].items()}
    columns |= {method_label(name): steps["best"] for name, steps in tasks["methods"].items()}
    rows = []
    for name, members in tasks["groups"].items():
        first = Cell("All" if name == ALL else name, f"mean of {len(members)}")
        rows.append([first, *(score_cell(found["groups"][name]) for found in columns.values())])
    for name, about in tasks["tasks"].items():
        first = Cell(name, _task_detail(results, name))
        rows.append([first, *(score_cell(found["tasks"][name], about["share"]) for found in columns.values())])
    return Table(f"Groups and skills of all models, {STEP_WORDS['best']}", ["Skill", *columns], rows, folded=True)


def score_cell(found: Mapping[str, Any], share: bool = True) -> Cell:
    return Cell(score_text(found["score"], share), interval_text(found["interval"], share))


def score_text(score: float, share: bool) -> str:
    return percent(score) if share else f"{score:.4g}"


def interval_text(interval: Sequence[float] | None, share: bool) -> str:
    """ "16.8 to 68.7", of a share in percent; nothing where there is no interval."""
    if interval is None:
        return ""
    low, high = ((f"{100 * limit:.1f}" if share else f"{limit:.4g}").replace("-", "−") for limit in interval)
    return f"{low} to {high}"


def baseline_cell(unit: Mapping[str, Any]) -> Cell:
    """A domain or task under the model that others are compared with."""
    if unit["kind"] == "domain":
        return Cell(f"{unit['baseline']:.4f}")
    return Cell(score_text(unit["baseline"], unit["share"]), interval_text(unit["baseline_interval"], unit["share"]))


def unit_cell(unit: Mapping[str, Any]) -> Cell:
    """A domain or task under one model: its figure, its interval, and the change against the original target."""
    tone: Tone = "worse" if unit["degraded_beyond_noise_seeds"] * 2 >= unit["seeds"] else ""
    if unit["kind"] == "domain":
        return Cell(f"{unit['model']:.4f}", signed_percent(unit["loss"]), tone)
    details = [_change(unit), interval_text(unit["model_interval"], unit["share"])]
    return Cell(score_text(unit["model"], unit["share"]), "; ".join(filter(None, details)), tone)


def change_text(unit: Mapping[str, Any]) -> str:
    """The change with its own sign, not the loss's: relative bits per byte, points of a share of right answers."""
    if unit["kind"] == "domain":
        return signed_percent(unit["loss"])
    return _change(unit) + ("\u00a0points" if unit["share"] else "")


def relative_interval(unit: Mapping[str, Any]) -> str:
    """How sure a change is: its interval over documents of one seed, the spread over several; nothing of a skill."""
    if unit["loss_spread"] is not None:
        return f"±{unit['loss_spread'] * 100:.1f} over seeds"
    (interval,) = unit["intervals"]
    if interval is None or unit["kind"] != "domain":
        return ""
    return short_interval([limit / unit["baseline"] for limit in interval])


def short_interval(interval: Sequence[float]) -> str:
    """Of shares, in percent and never broken over lines: the figure before it has the sign of percent."""
    low, high = (signed_percent(limit).removesuffix("\u00a0%") for limit in interval)
    return f"{low}\u00a0to\u00a0{high}"


def _change(unit: Mapping[str, Any]) -> str:
    """In points of a share, else relative; with the sign of the change, not of the loss."""
    if unit["share"]:
        return f"{unit['difference'] * 100:+.1f}".replace("-", "−")
    return signed_percent(unit["difference"] / abs(unit["baseline"])) if unit["baseline"] else MISSING
