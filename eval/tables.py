"""The report's tables, as plain cells, from the summary's numbers; how they look is the renderers' matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.cells import MISSING, Cell, Section, Table, percent
from eval.config import MERGE_ROW
from eval.report_inputs import STEPS, TARGET, Step, method_label
from eval.summary import GROUPS, SUBJECT, claim_group
from eval.verdict import number, signed_percent

STEP_WORDS = {"best": "at each method's best step", "last": "at the last step"}


def sections(results: Mapping[str, Any]) -> list[Section]:
    """Every section that has something to show, in reading order."""
    makers = (
        _overview, _per_domain, _skills, _interference, _selection, _sources, _ensembles, _alignment, _tuning, _stages,
    )  # fmt: skip
    return [section for maker in makers if (section := maker(results)) is not None]


def _overview(results: Mapping[str, Any]) -> Section:
    notes = [
        "Bits per byte and perplexity on held-out text: lower is better. Every domain counts the same; perplexity is "
        "the geometric mean over domains, per token of the target's tokenizer. “Worse than” counts domains and skills: "
        "first by the raw number, then those that chance does not explain.",
        _best_step_note(results),
        "± is the standard deviation over seeds." if _many_seeds(results) else "One seed per method: no spread.",
    ]
    return Section("overview", "Results", notes, [_headline(results, "best"), _headline(results, "last")])


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
    return Table(caption, ["Method", *(title for title, _ in columns)], rows, emphasis=method_label(SUBJECT))


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
    return Cell(percent(value), f"±{spread['skill_accuracy'] * 100:.1f}" if spread else "")


def _counts_cell(results: Mapping[str, Any], method: str, step: Step, key: str) -> Cell:
    counts = results["interference"].get(method, {}).get(step, {}).get(key)
    if counts is None:
        return Cell(MISSING, tone="muted")
    return Cell(number(counts["degraded"]), f"{number(counts['degraded_beyond_noise'])} beyond noise")


def _per_domain(results: Mapping[str, Any]) -> Section:
    notes = [
        "Bits per byte per domain, and the change against the original target. Domains marked “absent” are not in the "
        "continual corpus: what is lost there is forgotten knowledge. Red: worse than the original target beyond noise "
        "in at least half of the seeds."
    ]
    tables = [_unit_table(results, "domain", step) for step in STEPS]
    return Section("domains", "Every domain", notes, tables)


def _skills(results: Mapping[str, Any]) -> Section | None:
    if not results["methods"][TARGET]["mean"]["best"]["tasks"]:
        return None
    notes = [
        "Share of items answered exactly right, greedily decoded (of a benchmark with choices: where the likeliest one "
        "is right), and the change in points."
    ]
    return Section("skills", "Every skill", notes, [_unit_table(results, "task", step) for step in STEPS])


def _unit_table(results: Mapping[str, Any], kind: str, step: Step) -> Table:
    methods = [method for method in results["methods"] if method != TARGET]
    start = results["methods"][TARGET]["mean"][step]["domains" if kind == "domain" else "tasks"]
    by_method = {
        method: {unit["name"]: unit for unit in results["interference"][method][step]["units"] if unit["kind"] == kind}
        for method in methods
    }
    absent = results["domains"]["absent"] if kind == "domain" else []
    rows = []
    for name in sorted(start, key=lambda name: (name in absent, name)):
        first = Cell(name, "absent" if name in absent else "")
        baseline = f"{start[name]['bits_per_byte']:.4f}" if kind == "domain" else percent(start[name])
        rows.append([first, Cell(baseline), *(unit_cell(by_method[method][name]) for method in methods)])
    header = ["Domain" if kind == "domain" else "Skill", *(method_label(method) for method in [TARGET, *methods])]
    caption = f"{'Bits per byte' if kind == 'domain' else 'Accuracy'} {STEP_WORDS[step]}"
    return Table(caption, header, rows, folded=step == "last")


def unit_cell(unit: Mapping[str, Any]) -> Cell:
    """A domain or task under one model: its figure, and the change against the original target."""
    worse = unit["degraded_beyond_noise_seeds"] * 2 >= unit["seeds"]
    if unit["kind"] == "domain":
        return Cell(f"{unit['model']:.4f}", signed_percent(unit["loss"]), "worse" if worse else "")
    points = f"{unit['difference'] * 100:+.1f}".replace("-", "−")
    return Cell(percent(unit["model"]), points, "worse" if worse else "")


def _interference(results: Mapping[str, Any]) -> Section | None:
    if not results["interference"]:
        return None
    tables = []
    for step in STEPS:
        rows = [
            [Cell(method_label(method)), *loss_cells(found[step])] for method, found in results["interference"].items()
        ]
        caption = f"Domains and skills that got worse than the original target, {STEP_WORDS[step]}"
        tables.append(Table(caption, ["Method", *LOSS_HEADER], rows, emphasis=method_label(SUBJECT)))
    return Section("interference", "Knowledge interference", loss_notes(results), tables)


LOSS_HEADER = ("Worse", "Beyond noise", "Mean loss of the worse ones", "Mean loss of all", "Worst loss")


def loss_cells(found: Mapping[str, Any]) -> list[Cell]:
    """A model's cells under `LOSS_HEADER`; `found` is what `eval.summary.interference_over_seeds` tells of it."""
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


def _selection(results: Mapping[str, Any]) -> Section | None:
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
    notes = ["How the selection network shares its weight among the sources: mean fusion weight per position."]
    return Section("selection", "What the selection network chose", notes, tables)


def _sources(results: Mapping[str, Any]) -> Section | None:
    sources = results["sources"]
    if not sources:
        return None
    groups = [group for group in GROUPS if results["domains"][group]]
    titles = {"corpus": "Corpus domains", "absent": "Absent domains", "all": "All, bits/byte"}
    rows = []
    for source in sources:
        figures = (source["evaluation"] or {}).get("groups", {})
        rows.append(
            [
                Cell(source["id"]),
                Cell(source["architecture"]),
                Cell(_count(source["parameters"])),
                Cell(f"{source['vocab_size']:,}" if source["vocab_size"] else MISSING),
                *(Cell(f"{figures[g]['bits_per_byte']:.4f}" if figures.get(g) else MISSING) for g in groups),
            ]
        )
    header = ["Source", "Architecture", "Parameters", "Vocabulary", *(titles[group] for group in groups)]
    tables = [Table("The models that were fused", header, rows)]
    evaluated = [source for source in sources if source["evaluation"]]
    if evaluated:
        tables.append(_source_domains(results, evaluated))
    notes = ["Bits per byte compares models of different tokenizers over the same text; the lowest per domain is bold."]
    return Section("sources", "The sources", notes, tables)


def _source_domains(results: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> Table:
    start = results["methods"][TARGET]["mean"]["best"]["domains"]
    absent = results["domains"]["absent"]
    rows = []
    for name in sorted(start, key=lambda name: (name in absent, name)):
        figures = [start[name], *(source["evaluation"]["domains"].get(name) for source in sources)]
        values = [None if item is None else item["bits_per_byte"] for item in figures]
        best = min(value for value in values if value is not None)
        cells = [
            Cell(MISSING, tone="muted") if value is None else Cell(f"{value:.4f}", tone="best" if value == best else "")
            for value in values
        ]
        rows.append([Cell(name, "absent" if name in absent else ""), *cells])
    header = ["Domain", method_label(TARGET), *(source["id"] for source in sources)]
    return Table("Bits per byte of the models before fusion", header, rows)


def _ensembles(results: Mapping[str, Any]) -> Section | None:
    found = results["ensembles"]
    if found is None:
        return None
    split, report_split = found["split"], found["report_split"]
    notes = [
        f"Every row of this section is of the {split} split"
        + (
            ", like the tables above."
            if split == report_split
            else f", because the {report_split} split, that of the other tables, is not among precompute.splits: "
            "compare within this section only. Learning rate and best step were chosen on validation text."
        ),
        f"Candidates and ensembles are scored from the aligned shards (map {found['map']}) and no model is run or "
        "trained: the mean of the aligned candidates; the one with the lowest perplexity on the chunk so far "
        "(Top1-PPL); weights falling with that perplexity (PackLLM-sim, here over probabilities instead of logits); "
        "and at every token whichever candidate gives it most, which looks at the answer and is a ceiling, not a "
        "model. An ensemble runs all candidates for every token; a trained target runs alone.",
        "Shards spread the probability outside their entries evenly, and a candidate that is not aligned has the "
        "target's; models that are run have their full distributions. The target is there in both ways, to show what "
        "this costs.",
        "LLM-Blender has no row: it ranks and rewrites generated answers with trained models, and gives text no "
        "likelihood. FoE (Fusion of Experts) has none either: its fuser, trained on the experts' outputs, is what the "
        "selection network with its loss on the text (`select` in the training log) is; that fused teacher itself is "
        "not scored on held-out text, only the model that learns from it.",
    ]
    if any(name.startswith(MERGE_ROW) for name in found["models"]):
        notes.append(
            f"“{MERGE_ROW.strip()}” rows are the candidates that share the target's architecture and tokenizer, merged "
            "by weight; the scale of a merge that has one was chosen on validation text."
        )
    return Section("ensembles", "Ensembles and other models", notes, [_ensemble_overview(results), _by_domain(results)])


_ENSEMBLE_LABELS = {"uniform": "Uniform average", "top1_ppl": "Top1-PPL", "packllm_sim": "PackLLM-sim"}
_CEILING = "oracle"


def _ensemble_rows(results: Mapping[str, Any]) -> list[tuple[Cell, Mapping[str, Any]]]:
    """First cell and figures of every row: candidates, ensembles, the ceiling, models."""
    found = results["ensembles"]
    candidates = [(Cell(name, "aligned shards"), figures) for name, figures in found["candidates"].items()]
    ensembles = [(Cell(label, "ensemble"), found["ensembles"][name]) for name, label in _ENSEMBLE_LABELS.items()]
    ceiling = (Cell("Oracle per token", "ceiling", "muted"), found["ensembles"][_CEILING])
    models = [
        (Cell(method_label(name), "best step" if name in results["methods"] and name != TARGET else ""), figures)
        for name, figures in found["models"].items()
    ]
    return [*candidates, *ensembles, ceiling, *models]


def _ensemble_overview(results: Mapping[str, Any]) -> Table:
    groups = [group for group in GROUPS if results["domains"][group]]
    titles = {"corpus": "Corpus domains, bits/byte", "absent": "Absent domains, bits/byte", "all": "All, bits/byte"}
    columns = [(group, "bits_per_byte", 4) for group in groups]
    columns.append((claim_group(results["domains"]["corpus"]), "perplexity", 2))
    cells = []
    for group, metric, digits in columns:
        values = [figures["groups"][group] for _, figures in _ensemble_rows(results)]
        cells.append([Cell(MISSING, tone="muted") if of is None else Cell(f"{of[metric]:.{digits}f}") for of in values])
    rows = [[first, *row] for (first, _), row in zip(_ensemble_rows(results), zip(*cells, strict=True), strict=True)]
    header = ["Model", *(titles[group] for group in groups), "Perplexity"]
    caption = f"Ensembles without training, and models, {results['ensembles']['split']} split"
    return Table(caption, header, rows, emphasis=method_label(SUBJECT))


def _by_domain(results: Mapping[str, Any]) -> Table:
    """Bits per byte of every domain; a column per row of the overview."""
    columns = _ensemble_rows(results)
    absent = results["domains"]["absent"]
    domains = sorted(columns[0][1]["domains"], key=lambda name: (name in absent, name))
    rows = [
        [
            Cell(name, "absent" if name in absent else ""),
            *(Cell(f"{figures['domains'][name]['bits_per_byte']:.3f}") for _, figures in columns),
        ]
        for name in domains
    ]
    caption = f"Bits per byte by domain, {results['ensembles']['split']} split"
    return Table(caption, ["Domain", *(cell.plain() for cell, _ in columns)], rows, folded=True)


def _alignment(results: Mapping[str, Any]) -> Section | None:
    if not results["alignment"]:
        return None
    statuses: list[str] = []
    for by_source in results["alignment"].values():
        for shares in by_source.values():
            statuses += [status for status in shares if status not in statuses]
    rows = [
        [Cell(source, vocab_map), *(_share(shares.get(status)) for status in statuses)]
        for vocab_map, by_source in results["alignment"].items()
        for source, shares in by_source.items()
    ]
    notes = [
        f"Over the {results['alignment_split']} split. Share of target positions by how they were aligned with each "
        "source; a source drops out where it is not."
    ]
    header = ["Source (map)", *(status.replace("_", " ") for status in statuses)]
    tables = [Table("Positions by status", header, rows)]
    if results["fidelity"]:
        notes.append(
            "What alignment costs: bits per byte of the target's next tokens under the aligned distribution (a token "
            "that is not among its entries gets an equal share of the tail), against the source's own bits per byte "
            "on its own tokens. “Right”: the most probable aligned token is the next one."
        )
        tables += [_fidelity(results), *_fidelity_by_domain(results)]
    return Section("alignment", "Alignment", notes, tables)


def _fidelity(results: Mapping[str, Any]) -> Table:
    rows = []
    for vocab_map, by_source in results["fidelity"].items():
        for source, by_domain in by_source.items():
            found = by_domain[""]
            lowest = min(maps[source][""]["cost"] for maps in results["fidelity"].values() if source in maps)
            rows.append(
                [
                    Cell(source, vocab_map),
                    Cell(f"{found['own_bits_per_byte']:.4f}"),
                    Cell(f"{found['aligned_bits_per_byte']:.4f}"),
                    Cell(f"{found['cost']:+.4f}", tone="best" if found["cost"] == lowest else ""),
                    Cell(percent(found["hits"])),
                ]
            )
    header = ["Source (map)", "Own bits/byte", "Aligned bits/byte", "Cost", "Right"]
    return Table(f"What alignment costs, {results['alignment_split']} split", header, rows)


def _fidelity_by_domain(results: Mapping[str, Any]) -> list[Table]:
    """One table per map: the cost in every domain."""
    tables = []
    for vocab_map, by_source in results["fidelity"].items():
        domains = sorted({domain for found in by_source.values() for domain in found} - {""})
        rows = [
            [Cell(domain), *(Cell(f"{by_source[source][domain]['cost']:+.3f}") for source in by_source)]
            for domain in domains
        ]
        tables.append(Table(f"Cost by domain, map {vocab_map}", ["Domain", *by_source], rows, folded=True))
    return tables


def _share(value: Any) -> Cell:
    if value is None:
        return Cell(MISSING, tone="muted")
    return Cell(percent(value) if isinstance(value, int | float) else str(value))


def _tuning(results: Mapping[str, Any]) -> Section | None:
    if not results["tuning"]:
        return None
    best = {
        method: min(row["best_bits_per_byte"] for row in results["tuning"] if row["method"] == method)
        for method in dict.fromkeys(row["method"] for row in results["tuning"])
    }
    rows = [
        [
            Cell(method_label(row["method"])),
            Cell(f"{row['learning_rate']:g}"),
            Cell(
                f"{row['best_bits_per_byte']:.4f}",
                tone="best" if row["best_bits_per_byte"] == best[row["method"]] else "",
            ),
            Cell(f"{row['last_bits_per_byte']:.4f}"),
            Cell(f"{row['best_step']:,}"),
        ]
        for row in results["tuning"]
    ]
    notes = [
        "A method uses the learning rate that is best for it, with the first seed, on validation text of the corpus's "
        "own domains; a method without a row here uses the one that is best for continual training, the baseline."
    ]
    header = ["Method", "Learning rate", "Best step, bits/byte", "Last step, bits/byte", "Best step"]
    caption = "Every rate on validation text"
    return Section("tuning", "Learning-rate search", notes, [Table(caption, header, rows)])


def _stages(results: Mapping[str, Any]) -> Section | None:
    if not results["stages"]:
        return None
    rows = []
    for stage, found in results["stages"].items():
        seconds, tokens = found.get("seconds"), found.get("tokens")
        rate = f"{tokens / seconds:,.0f}" if tokens and seconds else MISSING
        counts = [
            f"{found[key]:,.0f}" if found.get(key) is not None else MISSING for key in ("parts", "rows", "tokens")
        ]
        cells = [_duration(seconds), *counts, rate, _bytes(found.get("bytes"))]
        rows.append([Cell(stage), *map(Cell, cells)])
    header = ["Stage", "Time", "Parts", "Rows", "Tokens", "Tokens/s", "Size"]
    return Section("stages", "Time and size of the stages", [], [Table("What the run took", header, rows)])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _bytes(count: float | None) -> str:
    return MISSING if count is None else _scaled(count, ["B", "kB", "MB", "GB", "TB"])


def _count(count: int | None) -> str:
    return MISSING if count is None else _scaled(count, ["", "k", "M", "B", "T"])


def _scaled(value: float, units: Sequence[str]) -> str:
    position = 0
    while value >= 999.5 and position < len(units) - 1:
        value, position = value / 1000, position + 1
    digits = 0 if position == 0 or value >= 99.5 else 1
    return f"{value:,.{digits}f} {units[position]}".rstrip()
