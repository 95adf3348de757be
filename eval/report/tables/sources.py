"""The models that were fused: themselves and their ensembles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusionx.eval.config import MERGE_ROW
from fusionx.eval.report.inputs import TARGET, method_label
from fusionx.eval.report.summary import GROUPS, SUBJECT, claim_group
from fusionx.eval.report.tables.cells import MISSING, Cell, Section, Table, count_text


def sources(results: Mapping[str, Any]) -> Section | None:
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
                Cell(count_text(source["parameters"])),
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
    return Section("sources", "The sources", notes, tables, behind=True)


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


def ensembles(results: Mapping[str, Any]) -> Section | None:
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
        f"Candidates and ensembles are scored from the aligned shards (by {found['alignment']}) and no model is run or "
        "trained: the mean of the aligned candidates; the one with the lowest perplexity on the chunk so far "
        "(Top1-PPL); weights falling with that perplexity (PackLLM-sim, here over probabilities instead of logits); "
        "weights that follow, token by token, who foretold the text so far (fixed share); and at every token whichever "
        "candidate gives it most, which looks at the answer and is a ceiling, not a "
        "model. An ensemble runs all candidates for every token; a trained target runs alone.",
        "Shards spread the probability outside their entries evenly, and a candidate that is not aligned has the "
        "target's; models that are run have their full distributions. The target is there in both ways, to show what "
        "this costs.",
        "LLM-Blender has no row: it ranks and rewrites generated answers with trained models, and gives text no "
        "likelihood. FoE (Fusion of Experts) is what the selection network with its loss on the text is.",
        "A method's teacher is the mixture that it learns from, with its gate at the best step. MinCE, AvgCE and a "
        "gate that sees `nll_per_byte` know how well each candidate foretells the whole chunk, so they have seen what "
        "they are scored on; the ensembles have not. The paper's gate per vocabulary id is no mixture and has no row.",
    ]
    if any(name.startswith(MERGE_ROW) for name in found["models"]):
        notes.append(
            f"“{MERGE_ROW.strip()}” rows are the candidates that share the target's architecture and tokenizer, merged "
            "by weight; the scale of a merge that has one was chosen on validation text."
        )
    tables = [_ensemble_overview(results), _by_domain(results)]
    return Section("ensembles", "Ensembles and other models", notes, tables, behind=True)


ENSEMBLE_LABELS = {
    "uniform": "Uniform average",
    "top1_ppl": "Top1-PPL",
    "packllm_sim": "PackLLM-sim",
    "fixed_share": "Fixed share",
}
_CEILING = "oracle"


def _ensemble_rows(results: Mapping[str, Any]) -> list[tuple[Cell, Mapping[str, Any]]]:
    """First cell and figures of every row: candidates, ensembles, the ceiling, models."""
    found = results["ensembles"]
    candidates = [(Cell(name, "aligned shards"), figures) for name, figures in found["candidates"].items()]
    ensembles = [(Cell(label, "ensemble"), found["ensembles"][name]) for name, label in ENSEMBLE_LABELS.items()]
    ceiling = (Cell("Oracle per token", "ceiling", "muted"), found["ensembles"][_CEILING])
    models = [
        (Cell(method_label(name), "best step" if name in results["methods"] and name != TARGET else ""), figures)
        for name, figures in found["models"].items()
    ]
    teachers = [
        (Cell(f"{method_label(name)}'s teacher", "mixture"), figures) for name, figures in found["teachers"].items()
    ]
    return [*candidates, *ensembles, *teachers, ceiling, *models]


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
