"""Ensembles of the sources on held-out text, and the models they compete with on the very same text.

Ensembles need aligned shards, which `eval.split` may not have. Then everything here is of the validation split, and
models are scored on it a second time, so that no table mixes splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fusionx.contract.errors import ConfigError
from fusionx.contract.shards.manifest import read_manifest
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.eval.report.inputs import TARGET, Ensembles
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.text.ensembles import AlignedSplit, evaluate_ensembles
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.evaluation.evaluate_models import (
    EvaluationJob,
    best_models,
    evaluate,
    evaluation_on,
    held_out_chunks,
    settings_on,
)
from fusionx.pipelines.evaluation.merging import make_merges
from fusionx.pipelines.evaluation.teachers import evaluate_teacher, has_teacher_figures
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.training.training_jobs import finished_jobs
from fusionx.train.config import TrainJob


def evaluate_rivals(config: FusionConfig, layout: Layout) -> int:
    """Makes `eval.merges`, and scores ensembles and their competitors: what is missing; returns how many models.

    Raises:
        DataError: shards do not belong together, or a training has no result.
        ConfigError: a model of `eval.rivals` has no folder, the candidates cannot be merged as `eval.merges` says, or
            there is no aligned held-out split to compare rivals on.
    """
    shards = aligned_split(config, layout)
    if shards is None:
        _refuse_rivals(config)
        return 0
    merged = make_merges(config, layout)
    evaluate_ensembles(shards, _scores_file(config, layout, shards.split))
    _teachers(layout, shards, finished_jobs(config, layout))
    chunks = held_out_chunks(layout, shards.split)
    settings = settings_on(config, shards.split)
    models = _models(config, layout, shards.split, finished_jobs(config, layout))
    return merged + sum(evaluate(item, chunks, settings) for _, item in models)


def rival_files(config: FusionConfig, layout: Layout, jobs: Sequence[TrainJob]) -> tuple[list[str], list[str]]:
    """Where `evaluate_rivals` keeps the scores of ensembles, and those of models; neither need be there.

    Reads one manifest and no model.

    Raises:
        DataError: the target's shards are not aligned yet.
        ConfigError: there is no aligned held-out split to compare rivals on.
    """
    split = _aligned_split_name(config, layout)
    if split is None:
        _refuse_rivals(config)
        return [], []
    return [_scores_file(config, layout, split)], [item.output for _, item in _models(config, layout, split, jobs)]


def _refuse_rivals(config: FusionConfig) -> None:
    rivals = [*config.eval.rivals, *config.eval.merge_rows]
    if rivals:
        raise ConfigError(
            "Rivals are compared on a held-out split of the aligned shards, and there is none.",
            field="precompute.splits",
            found=f"{config.precompute.splits}, and the rivals {', '.join(rivals)}",
            expected=f"{config.eval.split} or validation among them",
            remedy="add one of them and run `fusionx precompute` and `fusionx align`",
        )


def read_ensembles(config: FusionConfig, layout: Layout) -> Ensembles | None:
    """What `evaluate_rivals` made; None where no held-out split was aligned.

    Raises:
        DataError: an evaluation is missing.
    """
    shards = aligned_split(config, layout)
    if shards is None:
        return None
    models: dict[str, list[Evaluation]] = {}
    for name, item in _models(config, layout, shards.split, finished_jobs(config, layout)):
        models.setdefault(name, []).append(Evaluation.load(item.output))
    scores = evaluate_ensembles(shards, _scores_file(config, layout, shards.split))
    teachers = _teachers(layout, shards, finished_jobs(config, layout))
    return Ensembles(shards.split, config.eval.split, _alignment(config), scores, models, teachers)


def _teachers(layout: Layout, shards: AlignedSplit, jobs: Sequence[TrainJob]) -> dict[str, list[dict[str, Any]]]:
    """What the teacher of every training gives the split, by method, one per seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        if has_teacher_figures(job.method):
            output = layout.evaluation("teachers", job.method_name, f"seed-{job.seed}-{shards.split}")
            found.setdefault(job.method_name, []).append(evaluate_teacher(job, shards, output))
    return found


def aligned_split(config: FusionConfig, layout: Layout) -> AlignedSplit | None:
    """The shards of `eval.split` where it was aligned, else of validation; None where neither was."""
    target = config.target
    aligned = {model.id: layout.aligned(target.id, _alignment(config), model.id) for model in config.models}
    split = _aligned_split_name(config, layout)
    if split is None:
        return None
    vocab_size = load_encoder(target.path, target.revision).vocab_size
    return AlignedSplit(split, layout.tokens(target.id), aligned, vocab_size)


def _aligned_split_name(config: FusionConfig, layout: Layout) -> str | None:
    covered = read_manifest(layout.aligned(config.target.id, _alignment(config), config.target.id), "aligned", "align")
    return next((split for split in (config.eval.split, "validation") if covered.parts_of(split)), None)


def _alignment(config: FusionConfig) -> str:
    return config.align.methods[0]


def _scores_file(config: FusionConfig, layout: Layout, split: str) -> str:
    return layout.evaluation("ensembles", f"{split}-{_alignment(config)}")


def _models(
    config: FusionConfig, layout: Layout, split: str, jobs: Sequence[TrainJob]
) -> Iterator[tuple[str, EvaluationJob]]:
    """The original target, `eval.rivals`, `eval.merges`, and every method at its best step (once per seed), by name."""
    target, *trained = best_models(config, layout, split, jobs)
    yield TARGET, target
    for name, folder in config.eval.rivals.items():
        yield name, EvaluationJob(folder, evaluation_on(config, layout, split, "rivals", name))
    for name, method in config.eval.merge_rows.items():
        yield name, EvaluationJob(layout.merged(method), evaluation_on(config, layout, split, "merged", method))
    for job, item in zip(jobs, trained, strict=True):
        yield job.method_name, item
