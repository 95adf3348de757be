"""Ensembles of the sources on held-out text, and the models they compete with on the very same text.

Ensembles need aligned shards, which `eval.split` may not have. Then everything here is of the validation split, and
models are scored on it a second time, so that no table mixes splits.
"""

from __future__ import annotations

from collections.abc import Iterator

from contract.encoder import load_encoder
from contract.manifest import read_manifest
from contract.storage import join
from eval.config import EvalConfig
from eval.ensembles import AlignedSplit, evaluate_ensembles
from eval.evaluation import Evaluation
from eval.report_inputs import TARGET, Ensembles
from pipelines.config import FusionConfig
from pipelines.evaluation import Evaluated, evaluate, held_out_chunks, local_folder
from pipelines.layout import Layout
from pipelines.training import finished_jobs


def evaluate_rivals(config: FusionConfig, layout: Layout) -> int:
    """Scores ensembles and their competitors, what is not scored yet; returns how many models that were.

    Raises:
        DataError: shards do not belong together, or a training has no result.
        ConfigError: a model of `eval.rivals` has no folder.
    """
    shards = aligned_split(config, layout)
    if shards is None:
        return 0
    evaluate_ensembles(shards, _scores_file(config, layout, shards.split))
    chunks = held_out_chunks(layout, shards.split)
    settings = _settings(config, shards.split)
    return sum(evaluate(item, chunks, settings) for _, item in _models(config, layout, shards.split))


def read_ensembles(config: FusionConfig, layout: Layout) -> Ensembles | None:
    """What `evaluate_rivals` made; None where no held-out split was aligned.

    Raises:
        DataError: an evaluation is missing.
    """
    shards = aligned_split(config, layout)
    if shards is None:
        return None
    models: dict[str, list[Evaluation]] = {}
    for name, item in _models(config, layout, shards.split):
        models.setdefault(name, []).append(Evaluation.load(item.output))
    scores = evaluate_ensembles(shards, _scores_file(config, layout, shards.split))
    return Ensembles(shards.split, config.eval.split, _map(config), scores, models)


def aligned_split(config: FusionConfig, layout: Layout) -> AlignedSplit | None:
    """The shards of `eval.split` where it was aligned, else of validation; None where neither was."""
    target = config.target
    aligned = {model.id: layout.aligned(target.id, _map(config), model.id) for model in config.models}
    covered = read_manifest(aligned[target.id], "aligned", "align")
    split = next((split for split in (config.eval.split, "validation") if covered.parts_of(split)), None)
    if split is None:
        return None
    vocab_size = load_encoder(target.path, target.revision).vocab_size
    return AlignedSplit(split, layout.tokens(target.id), aligned, vocab_size)


def _map(config: FusionConfig) -> str:
    return config.align.maps[0]


def _scores_file(config: FusionConfig, layout: Layout, split: str) -> str:
    return layout.evaluation("ensembles", f"{split}-{_map(config)}")


def _settings(config: FusionConfig, split: str) -> EvalConfig:
    """On another split than `eval.split` only the text is scored."""
    if split == config.eval.split:
        return config.eval
    return config.eval.model_copy(update={"split": split, "tasks": []})


def _models(config: FusionConfig, layout: Layout, split: str) -> Iterator[tuple[str, Evaluated]]:
    """The original target, `eval.rivals`, and every method at its best step, by name; a method once per seed."""
    elsewhere = () if split == config.eval.split else (split,)
    yield TARGET, Evaluated(local_folder(config.target), layout.evaluation(*elsewhere, "models", config.target.id))
    for name, folder in config.eval.rivals.items():
        yield name, Evaluated(folder, layout.evaluation(*elsewhere, "rivals", name))
    for job in finished_jobs(config, layout):
        output = layout.evaluation(*elsewhere, job.method_name, f"seed-{job.seed}", "best")
        yield job.method_name, Evaluated(join(job.output, "best"), output)
