"""The report's numbers: from evaluations and logs to one plain dictionary, which becomes results.json.

Tables, plots and the verdict read this dictionary only, so that every figure they show is in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from fusionx.eval.report.inputs import STEPS, TARGET, MethodRun, ReportInputs, Step, method_label
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.interference import METHOD_NOTE, compare
from fusionx.eval.results.over_seeds import combine, interference_over_seeds, mean, mean_documents, over_seeds
from fusionx.eval.results.recommendation import Documents, relative_change
from fusionx.eval.results.statistics import spread
from fusionx.eval.results.task_scores import task_scores

SUBJECT = "fusionx"
BASELINES = ("ct", "fusellm", "paper")
Domains = Mapping[str, Mapping[str, float]]
"""Domain -> figures, at least `bits_per_byte` and `perplexity`."""

GROUPS = ("corpus", "absent", "all")
"""Domains that the training text has, domains that it has not, and both together."""

ONE_SEED = "One seed gives no interval: differences between seeds are unknown."
FORMAT_VERSION = 2


def summarize(inputs: ReportInputs) -> dict[str, Any]:
    """Every number of the report.

    Keys: `methods` (per method `per_seed`, `mean`, `spread`, at `best` and `last`), `comparison` (`fusionx` against
    each baseline), `interference` (per method against the original target and against ct), `tasks` (every model's
    scores with intervals, see `eval.results.task_scores`), `selection`, `curves`, `tuning`, `continuations`,
    `sources`, `alignment_split`, `alignment`, `fidelity`, `calibration`, `ensembles` (on a split of their own),
    `stages`, `domains`, `target` (its id), `provenance`, `config`.
    """
    interference = _interference(inputs)
    return {
        "format": FORMAT_VERSION,
        "title": inputs.title,
        "target": inputs.target,
        "domains": {
            "corpus": _group_domains(inputs, "corpus", inputs.original.domains),
            "absent": _group_domains(inputs, "absent", inputs.original.domains),
            "all": sorted(inputs.original.domains),
        },
        "methods": _methods(inputs),
        "comparison": _comparison(inputs, interference),
        "interference": interference,
        "tasks": _task_scores(inputs),
        "selection": {method: shares for method in inputs.methods() if (shares := _selection(inputs, method))},
        "curves": {method: _curves(inputs, method) for method in inputs.methods()},
        "tuning": inputs.tuning,
        "continuations": _continuations(inputs),
        "sources": [_source(inputs, index) for index in range(len(inputs.sources))],
        "alignment_split": inputs.alignment_split,
        "alignment": inputs.alignment,
        "fidelity": inputs.fidelity,
        "calibration": inputs.calibration,
        "ensembles": _ensembles(inputs),
        "stages": inputs.stages,
        "judging": {"note": METHOD_NOTE, "bootstrap": inputs.bootstrap, "confidence": inputs.confidence},
        "provenance": inputs.provenance,
        "config": inputs.config,
        "command": inputs.command,
    }


def _group_domains(inputs: ReportInputs, group: str, domains: Iterable[str]) -> list[str]:
    chosen = {"corpus": inputs.train_domains, "absent": inputs.absent_domains, "all": [*domains]}[group]
    return sorted(domain for domain in domains if domain in chosen)


def _snapshot(inputs: ReportInputs, evaluation: Evaluation, step: int) -> dict[str, Any]:
    """One model's figures: per domain, over groups of domains (macro means), per task."""
    return {
        "step": step,
        **_held_out_figures(inputs, evaluation.domains),
        "tasks": {name: figures["score"] for name, figures in sorted(evaluation.tasks.items())},
        "skill_accuracy": evaluation.skill_accuracy,
    }


def _held_out_figures(inputs: ReportInputs, domains: Domains) -> dict[str, Any]:
    """`domains` and `groups`: of every domain, and over groups of them."""
    return {
        "domains": {
            domain: {"bits_per_byte": figures["bits_per_byte"], "perplexity": figures["perplexity"]}
            for domain, figures in sorted(domains.items())
        },
        "groups": {group: _group_figures(inputs, group, domains) for group in GROUPS},
    }


def _group_figures(inputs: ReportInputs, group: str, domains: Domains) -> dict[str, Any] | None:
    """Mean bits per byte, and exp of the mean nats per token, over the group's domains; None for an empty group."""
    figures = [domains[domain] for domain in _group_domains(inputs, group, domains)]
    if not figures:
        return None
    return {
        "bits_per_byte": mean([item["bits_per_byte"] for item in figures]),
        "perplexity": geometric_mean([item["perplexity"] for item in figures]),
    }


def _methods(inputs: ReportInputs) -> dict[str, Any]:
    start = _snapshot(inputs, inputs.original, 0)
    methods: dict[str, Any] = {
        TARGET: {
            "label": method_label(TARGET),
            "model": inputs.original.model,
            "seeds": [],
            "per_seed": {},
            "mean": dict.fromkeys(STEPS, start),
            "spread": dict.fromkeys(STEPS),
        }
    }
    for method in inputs.methods():
        runs = inputs.runs_of(method)
        per_seed = {
            str(seed): {
                "best": _snapshot(inputs, run.best, run.best_step),
                "last": _snapshot(inputs, run.last, run.steps),
                "learning_rate": run.learning_rate,
            }
            for seed, run in runs.items()
        }
        snapshots = {step: [figures[step] for figures in per_seed.values()] for step in STEPS}
        methods[method] = {
            "label": method_label(method),
            "seeds": list(runs),
            "per_seed": per_seed,
            "mean": {step: combine(snapshots[step], mean) for step in STEPS},
            "spread": {step: combine(snapshots[step], spread) if len(runs) > 1 else None for step in STEPS},
        }
    return methods


def _interference(inputs: ReportInputs) -> dict[str, Any]:
    """Per method and step: against the original target and, for the same seed, against ct."""
    ct_runs = inputs.runs_of("ct")
    judge = partial(compare, resamples=inputs.bootstrap, confidence=inputs.confidence)
    found: dict[str, Any] = {}
    for method in inputs.methods():
        runs = inputs.runs_of(method)
        paired = {seed: ct_runs[seed] for seed in runs if method != "ct" and seed in ct_runs}
        found[method] = {}
        for step in STEPS:
            seeds, ct = ({seed: run.at(step) for seed, run in of.items()} for of in (runs, paired))
            found[method][step] = interference_over_seeds(inputs.original, seeds, ct, inputs.absent_domains, judge)
    return found


def _task_scores(inputs: ReportInputs) -> dict[str, Any]:
    models = {TARGET: [inputs.original]}
    models |= {source.id: [source.evaluation] for source in inputs.sources if source.evaluation is not None}
    of_methods = {
        method: {step: [run.at(step) for run in inputs.runs_of(method).values()] for step in STEPS}
        for method in inputs.methods()
    }
    return task_scores(models, of_methods)


def _comparison(inputs: ReportInputs, interference: Mapping[str, Any]) -> dict[str, Any] | None:
    """`fusionx` against each baseline and other method, seed by seed; None without `fusionx`.

    `<metric>_vs_<baseline>[step][group]` holds the `mean` over seeds of the relative difference (negative: lower,
    better) and `ci95`, Student's t interval over seeds (None for one seed); its own `mean` and `ci95` repeat those
    over all domains at each method's best step. Bits per byte at the best step have `documents`, too: the interval
    over documents of the seeds' mean (None of too few). `claim` is the group that the verdict judges.
    """
    runs = inputs.runs_of(SUBJECT)
    if not runs:
        return None
    claim = claim_group(_group_domains(inputs, "corpus", inputs.original.domains))
    found: dict[str, Any] = {"of": SUBJECT, "seeds": len(runs), "seed_values": list(runs), "claim": claim}
    for baseline in dict.fromkeys([*BASELINES, *inputs.methods()]):
        if baseline == SUBJECT:
            continue
        pairs = [(run, other) for seed, run in runs.items() if (other := inputs.runs_of(baseline).get(seed))]
        found[f"bpb_vs_{baseline}"] = _relative(inputs, pairs, "bits_per_byte")
        found[f"perplexity_vs_{baseline}"] = _relative(inputs, pairs, "perplexity")
    found["vs_target"] = _relative_to_target(inputs, runs)
    ratios = {step: _degraded_ratios(interference, step) for step in STEPS}
    found["degraded_ratio_to_fusellm"] = ratios["best"]["raw"]
    found["degraded_ratios_to_fusellm"] = ratios
    found["degraded"] = {method: _degraded_counts(interference[method]) for method in interference}
    found["note"] = ONE_SEED if len(runs) == 1 else None
    return found


def claim_group(corpus_domains: Sequence[str]) -> str:
    """The domains that the best step is chosen on: the corpus's; all where the held-out text has none of them."""
    return "corpus" if corpus_domains else "all"


def _relative(inputs: ReportInputs, pairs: Sequence[tuple[MethodRun, MethodRun]], metric: str) -> dict[str, Any] | None:
    if not pairs:
        return None
    found: dict[str, Any] = {}
    for step in STEPS:
        found[step] = {}
        for group in GROUPS:
            figures = [[_group_figures(inputs, group, run.at(step).domains) for run in pair] for pair in pairs]
            found[step][group] = over_seeds([a[metric] / b[metric] - 1 for a, b in figures if a and b])
    if metric == "bits_per_byte":
        _add_documents(inputs, found["best"], *zip(*((run.best, other.best) for run, other in pairs), strict=True))
    headline = found["best"]["all"]
    return {
        "mean": headline["mean"],
        "ci95": headline["ci95"],
        "step": "best",
        "group": "all",
        "seeds": len(pairs),
        **found,
    }


def _relative_to_target(inputs: ReportInputs, runs: Mapping[int, MethodRun]) -> dict[str, Any]:
    """Relative difference in bits per byte to the original target, per step and group of domains."""
    found: dict[str, Any] = {}
    for step in STEPS:
        found[step] = {}
        for group in GROUPS:
            start = _group_figures(inputs, group, inputs.original.domains)
            figures = [_group_figures(inputs, group, run.at(step).domains) for run in runs.values()]
            ratios = [item["bits_per_byte"] / start["bits_per_byte"] - 1 for item in figures if item and start]
            found[step][group] = over_seeds(ratios)
    _add_documents(inputs, found["best"], [run.best for run in runs.values()], [inputs.original])
    return found


def _add_documents(
    inputs: ReportInputs, by_group: Mapping[str, Any], models: Sequence[Evaluation], others: Sequence[Evaluation]
) -> None:
    """`documents`: the interval over documents of the difference between two methods' means over seeds."""
    changes = _changes(inputs, mean_documents([of.documents for of in models]),
                       mean_documents([of.documents for of in others]))  # fmt: skip
    for group, found in by_group.items():
        if found is not None:
            found["documents"] = changes[group]["interval"]


def _degraded_counts(of_method: Mapping[str, Any]) -> dict[str, Any]:
    """Mean over seeds of the number of units that got worse than the original target, and than ct."""
    return {
        step: {
            "vs_target": _two_counts(of_method[step]["mean"]),
            "vs_ct": _two_counts(of_method[step]["vs_ct_mean"]) if of_method[step]["vs_ct_mean"] else None,
        }
        for step in STEPS
    }


def _two_counts(summary: Mapping[str, float]) -> dict[str, float]:
    return {"raw": summary["degraded"], "beyond_noise": summary["degraded_beyond_noise"], "units": summary["units"]}


def _degraded_ratios(interference: Mapping[str, Any], step: Step) -> dict[str, float | None]:
    """Units degraded under `fusionx` over those under `fusellm` (means over seeds); None without any of the latter."""
    ratios: dict[str, float | None] = {}
    for name, key in (("raw", "degraded"), ("beyond_noise", "degraded_beyond_noise")):
        other = interference["fusellm"][step]["mean"][key] if "fusellm" in interference else 0
        ratios[name] = interference[SUBJECT][step]["mean"][key] / other if other else None
    return ratios


def _selection(inputs: ReportInputs, method: str) -> dict[str, Any] | None:
    """Each source's mean fusion weight per domain, from the last selection record, averaged over seeds."""
    records = [events[-1] for run in inputs.runs_of(method).values() if (events := run.events("selection"))]
    if not records:
        return None
    domains = sorted(set.intersection(*(set(record["domains"]) for record in records)))
    shares = {domain: combine([record["domains"][domain] for record in records], mean) for domain in domains}
    if not shares:
        return None
    return {
        "steps": [record["step"] for record in records],
        "domains": shares,
        "mean": combine(list(shares.values()), mean),
    }


def _curves(inputs: ReportInputs, method: str) -> dict[str, Any]:
    """Validation figures by step, per seed: over all domains as logged, and over the corpus's and the absent ones."""
    return {
        str(seed): [_validation_figures(inputs, record) for record in run.events("validation")]
        for seed, run in inputs.runs_of(method).items()
    }


def _validation_figures(inputs: ReportInputs, record: Mapping[str, Any]) -> dict[str, Any]:
    """`bits_per_byte` is a mean over domains, `perplexity` pooled over tokens, as the trainer logs them.

    `corpus_bits_per_byte` is what the best step is chosen by; `corpus_perplexity` and `absent_perplexity` are geometric
    means over domains. None where a log does not tell, or where the figure is not finite.
    """
    domains = record.get("domains") or {}
    # The trainer's own rule: without a domain of the corpus in the validation text, all domains count.
    corpus = [figures for name, figures in domains.items() if name in inputs.train_domains] or list(domains.values())
    absent = [figures for name, figures in domains.items() if name in inputs.absent_domains]
    chosen_by = record.get("trained_bits_per_byte")
    if chosen_by is None and corpus:  # logs of before it was recorded
        chosen_by = mean([item["bits_per_byte"] for item in corpus])
    figures = {
        "bits_per_byte": record.get("bits_per_byte"),
        "corpus_bits_per_byte": chosen_by,
        "perplexity": record.get("perplexity"),
        "corpus_perplexity": geometric_mean([item["perplexity"] for item in corpus]),
        "absent_perplexity": geometric_mean([item["perplexity"] for item in absent]),
    }
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}
    return {"step": record["step"], **finite}


def geometric_mean(perplexities: Sequence[float]) -> float | None:
    """None of nothing."""
    return math.exp(mean([math.log(value) for value in perplexities])) if perplexities else None


def _source(inputs: ReportInputs, index: int) -> dict[str, Any]:
    source = inputs.sources[index]
    evaluation = source.evaluation
    return {
        "id": source.id,
        "architecture": source.architecture,
        "parameters": source.parameters,
        "vocab_size": source.vocab_size,
        "evaluation": None if evaluation is None else _snapshot(inputs, evaluation, 0),
    }


def _continuations(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Per beginning of a document what stands there and what models wrote, of a method its first seed at its best."""
    sources = {source.id: source.evaluation for source in inputs.sources if source.id != inputs.target}
    models = {TARGET: inputs.original, **{id: found for id, found in sources.items() if found is not None}}
    models |= {method: next(iter(inputs.runs_of(method).values())).best for method in inputs.methods()}
    written = {name: {(of["domain"], of["doc_id"]): of for of in model.continuations} for name, model in models.items()}
    return [
        {
            **{name: one[name] for name in ("domain", "prompt", "text")},
            "written": {name: of[key]["written"] for name, of in written.items() if key in of},
        }
        for key, one in written[TARGET].items()
    ]


def _ensembles(inputs: ReportInputs) -> dict[str, Any] | None:
    """Candidates and ensembles through the aligned shards, and models, on one split; methods as means over seeds.

    All but teachers have their `change` against the original target that is run, by group of domains.
    """
    found = inputs.ensembles
    if found is None:
        return None
    start = found.models[TARGET][0]
    shown = {
        kind: {
            name: {
                **_held_out_figures(inputs, figures["domains"]),
                "change": _changes(inputs, figures["documents"], start.documents),
            }
            for name, figures in found.scores[kind].items()
        }
        for kind in ("candidates", "ensembles")
    }
    models = {
        name: {
            **combine([_held_out_figures(inputs, evaluation.domains) for evaluation in evaluations], mean),
            "change": _changes(inputs, mean_documents([of.documents for of in evaluations]), start.documents),
        }
        for name, evaluations in found.models.items()
    }
    plain = {"split": found.split, "report_split": found.report_split, "alignment": found.alignment}
    counts = {name: found.scores[name] for name in ("positions", "unaligned")}
    teachers = {
        name: combine([_held_out_figures(inputs, one["domains"]) for one in of_seeds], mean)
        for name, of_seeds in found.teachers.items()
    }
    return {**plain, **counts, **shown, "teachers": teachers, "models": models}


def _changes(inputs: ReportInputs, documents: Documents, baseline: Documents) -> dict[str, Any]:
    """Group -> relative difference in bits per byte, with its interval over documents; None for an empty group."""
    groups = {group: _group_domains(inputs, group, baseline) for group in GROUPS}
    return {
        group: relative_change(documents, baseline, domains, inputs.bootstrap, inputs.confidence) if domains else None
        for group, domains in groups.items()
    }
