"""Collects what the stages left behind into the report's inputs and has the report written."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fusionx.align.fidelity import held_out, ratios, shares
from fusionx.contract.files.storage import write_bytes
from fusionx.contract.models.place import loadable
from fusionx.contract.shards.manifest import read_manifest
from fusionx.eval.report.card_section import evaluation_section, with_evaluation
from fusionx.eval.report.inputs import STEPS, MethodRun, ReportInputs, SourceFigures, Step
from fusionx.eval.report.pages import write_report
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.evaluation.aligned_figures import fidelity_figures
from fusionx.pipelines.evaluation.ensembles import read_ensembles
from fusionx.pipelines.evaluation.evaluate_models import evaluation_of, load_evaluation
from fusionx.pipelines.evaluation.recommended_model import publish, recommendation
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.timings import read_timings
from fusionx.pipelines.training.training_jobs import finished_jobs, read_tuning
from fusionx.precompute.config import ModelConfig
from fusionx.train.config import TrainJob
from fusionx.train.state.result import finished_result, read_log

_Aligned = dict[str, dict[str, dict[str, Any]]]
"""Method -> source -> statistics."""
_PACKAGES = ("torch", "transformers", "tokenizers", "pyarrow", "numpy")


def report(config: FusionConfig, layout: Layout, command: str) -> dict[str, Any]:
    """Writes results.json, report.md and report.html, completes the exported models' cards, and renews `model/`.

    Args:
        command: what made the run, a line per command.

    Returns:
        The content of results.json.
    """
    results = write_report(report_inputs(config, layout, command), layout.report)
    for job in finished_jobs(config, layout):
        for step in STEPS:
            _complete_card(Path(job.output, step, "README.md"), results, job, step)
    publish(config, layout, results)
    return results


def _complete_card(path: Path, results: dict[str, Any], job: TrainJob, step: Step) -> None:
    """Adds the evaluation to an exported model's card, or puts this one in the place of an older one."""
    if path.is_file():
        card = path.read_text(encoding="utf-8")
        complete = with_evaluation(card, evaluation_section(results, job.method_name, job.seed, step))
        if complete != card:
            write_bytes(path, complete.encode())


def report_inputs(config: FusionConfig, layout: Layout, command: str) -> ReportInputs:
    split, aligned = _alignment(config, layout)
    train_domains = trained_domains(config, layout)
    original = load_evaluation(config, layout, layout.evaluation("models", config.target.id))
    return ReportInputs(
        title=config.name,
        config=config.model_dump(mode="json"),
        provenance=_provenance(config, layout),
        original=original,
        target=config.target.id,
        runs=[_run(config, layout, job) for job in finished_jobs(config, layout)],
        tuning=read_tuning(config, layout).rows,
        train_domains=train_domains,
        absent_domains=sorted(set(original.domains) - set(train_domains)),
        stages={name: _summed(parts) for name, parts in read_timings(layout).items()},
        alignment_split=split,
        alignment=_each(aligned, lambda stats: shares(stats["status"])),
        fidelity=_each(aligned, lambda stats: fidelity_figures(stats["fidelity"])),
        calibration=_each(aligned, _calibration),
        sources=[_source(config, layout, model) for model in config.models],
        ensembles=read_ensembles(config, layout),
        bootstrap=config.eval.bootstrap,
        confidence=config.eval.confidence,
        recommendation=recommendation(config, layout, train_domains),
        command=command,
    )


def _run(config: FusionConfig, layout: Layout, job: TrainJob) -> MethodRun:
    result = finished_result(job) or {}
    best, last = (load_evaluation(config, layout, evaluation_of(layout, job, step)) for step in ("best", "last"))
    return MethodRun(
        method=job.method_name,
        seed=job.seed,
        last=last,
        best=best,
        best_step=result["best_step"],
        steps=result["steps"],
        log=read_log(Path(job.output)),
        learning_rate=job.optimizer.learning_rate,
    )


def trained_domains(config: FusionConfig, layout: Layout) -> list[str]:
    """The domains that the training text has."""
    tokens = read_manifest(layout.tokens(config.target.id), "tokens", "align")
    return sorted({domain for part in tokens.parts_of("train") for domain in part.stats["domains"]})


def _alignment(config: FusionConfig, layout: Layout) -> tuple[str, _Aligned]:
    """The split by which alignment is judged, and method -> source -> statistics, from the aligned manifests."""
    folders = {
        method: {model.id: layout.aligned(config.target.id, method, model.id) for model in config.models}
        for method in config.align.methods
    }
    found = {
        method: {id: held_out(read_manifest(folder, "aligned", "align")) for id, folder in of.items()}
        for method, of in folders.items()
    }
    # All sources are aligned over the same parts.
    split, _ = next(iter(next(iter(found.values())).values()))
    return split, {method: {id: stats for id, (_, stats) in of.items()} for method, of in found.items()}


def _each(aligned: _Aligned, of_source: Callable[[dict[str, Any]], Any]) -> dict[str, dict[str, Any]]:
    return {method: {id: of_source(stats) for id, stats in of.items()} for method, of in aligned.items()}


def _calibration(stats: dict[str, Any]) -> dict[str, list[float | None]]:
    return {"aligned": ratios(stats["calibration"]), "own": ratios(stats["own_calibration"])}


def _source(config: FusionConfig, layout: Layout, model: ModelConfig) -> SourceFigures:
    from fusionx.precompute.logits.source_model import load_model_config

    model_config = load_model_config(model)
    evaluated = config.eval.sources or model.id == config.target.id
    return SourceFigures(
        id=model.id,
        architecture=(model_config.architectures or [model_config.model_type])[0],
        parameters=_parameters(loadable(model.path, model.revision)),
        vocab_size=model_config.vocab_size,
        evaluation=load_evaluation(config, layout, layout.evaluation("models", model.id)) if evaluated else None,
    )


def _parameters(path: str) -> int | None:
    """Stored weights of a local folder, from the safetensors headers; None for a hub id."""
    from safetensors import safe_open

    files = sorted(Path(path).glob("*.safetensors"))
    count = 0
    for file in files:
        with safe_open(file, framework="np") as weights:
            for name in weights.keys():  # noqa: SIM118  # safe_open is no mapping
                size = 1
                for length in weights.get_slice(name).get_shape():
                    size *= length
                count += size
    return count or None


def _provenance(config: FusionConfig, layout: Layout) -> dict[str, Any]:
    return {
        "config_digest": config.digest(),
        "chunks": read_manifest(layout.chunks, "chunks", "chunk").digest,
        "python": platform.python_version(),
        "processor": platform.machine(),
        **{package: version(package) for package in _PACKAGES},
    }


def _summed(parts: dict[str, dict[str, float]]) -> dict[str, float]:
    """Numbers of a stage over its parts (its sources)."""
    names = {name for numbers in parts.values() for name in numbers}
    return {name: sum(numbers.get(name, 0) for numbers in parts.values()) for name in sorted(names)}
