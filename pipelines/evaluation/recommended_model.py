"""The model that a run recommends: chosen on validation text, and kept in `model/` as an ordinary model folder.

`eval.results.recommendation` decides, `eval.report.recommendation` words it; here are the files.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fusionx.contract.errors import DamageError
from fusionx.contract.files.atomic_folder import atomic_folder, recover
from fusionx.contract.files.sealed import FILES, FOLDER_SEAL, hashes_of, seal_folder, verified
from fusionx.contract.files.storage import delete_folder, exists, write_bytes
from fusionx.eval.report.inputs import TARGET
from fusionx.eval.report.recommendation import with_reason
from fusionx.eval.report.summary import claim_group
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.results.interference import check_comparable
from fusionx.eval.results.recommendation import Contender, recommend
from fusionx.eval.text.own_text import own_documents
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.evaluation.evaluate_models import (
    EvaluationJob,
    best_models,
    evaluate_each,
    held_out_chunks,
    local_folder,
    settings_on,
)
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.training.training_jobs import finished_jobs
from fusionx.train.config import TrainJob

SPLIT = "validation"
_WEIGHTS = ".safetensors"
_SELECTION = "asn"
"""The selection network's two files, which a training exports beside the model."""
_OTHERS = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")


def evaluate_for_choice(config: FusionConfig, layout: Layout) -> int:
    """Scores on validation text the target and every method's models, where they are not yet; returns how many.

    Raises:
        DataError: a training has no result, or there is no validation text.
    """
    models = [item for _, item in _contenders(config, layout, finished_jobs(config, layout))]
    return evaluate_each(models, held_out_chunks(layout, SPLIT), settings_on(config, SPLIT))


def choice_files(config: FusionConfig, layout: Layout, jobs: Sequence[TrainJob]) -> list[str]:
    """Where `evaluate_for_choice` keeps its scores; looks at no file."""
    return [item.output for _, item in _contenders(config, layout, jobs)]


def _contenders(
    config: FusionConfig, layout: Layout, jobs: Sequence[TrainJob]
) -> Iterator[tuple[TrainJob | None, EvaluationJob]]:
    """None: the target."""
    return zip([None, *jobs], best_models(config, layout, SPLIT, jobs), strict=True)


def recommendation(config: FusionConfig, layout: Layout, train_domains: Sequence[str]) -> dict[str, Any]:
    """What `recommend` says of this run's models, with `claim`, the group of domains, and `folder`, where it will lie.

    Args:
        train_domains: those of the training text. They count, as for a training's best step; all where the validation
            text has none of them.

    Raises:
        DataError: an evaluation is missing, or two were made of different data or settings.
    """
    found: list[Contender] = []
    original: Evaluation | None = None
    for job, item in _contenders(config, layout, finished_jobs(config, layout)):
        evaluation = Evaluation.load(item.output)
        original = original or evaluation
        check_comparable(original, evaluation)
        name = (TARGET, config.target.id, None) if job is None else ("method", job.method_name, job.seed)
        found.append(Contender(name[0], name[1], evaluation.documents, name[2]))  # type: ignore[arg-type]
    method = config.align.methods[0]
    aligned = {model.id: layout.aligned(config.target.id, method, model.id) for model in config.sources}
    of_sources = own_documents(layout.tokens(config.target.id), aligned, SPLIT)
    found += [Contender("source", name, documents) for name, documents in of_sources.items()]
    assert original is not None
    corpus = [name for name in original.domains if name in train_domains]
    chosen = recommend(
        found, corpus or list(original.domains), resamples=config.eval.bootstrap, confidence=config.eval.confidence
    )
    return {**chosen, "claim": claim_group(corpus), "folder": layout.told(layout.model)}


def publish(config: FusionConfig, layout: Layout, results: dict[str, Any]) -> None:
    """Puts the recommended model into `model/`, unless it stands there whole, and brings its card up to date.

    Args:
        results: the report's, with its `recommendation`.

    Raises:
        DataError: the folder cannot be written, or the model is gone.
    """
    chosen, final = results["recommendation"], Path(layout.model)
    folder, card = _chosen(config, layout, chosen)
    files = [file for file in folder.iterdir() if _belongs(file)]
    recover(final)
    if not _stands(final, hashes_of(files, folder)):
        with atomic_folder(final) as made:
            for file in files:
                _place(file, made / file.name)
            seal_folder(made)
    complete, place = with_reason(card, results).encode(), final / "README.md"
    if not place.is_file() or place.read_bytes() != complete:
        write_bytes(place, complete)


def _chosen(config: FusionConfig, layout: Layout, chosen: dict[str, Any]) -> tuple[Path, str]:
    """Where the chosen model lies, and its card."""
    if chosen["kind"] == TARGET:
        from fusionx.train.state.model_card import unchanged_card

        target = config.target
        return Path(local_folder(target)), unchanged_card(target.id, target.path, target.revision)
    jobs = finished_jobs(config, layout)
    job = next(job for job in jobs if (job.method_name, job.seed) == (chosen["name"], chosen["seed"]))
    folder = Path(job.output, "best")
    return folder, (folder / "README.md").read_text(encoding="utf-8")


def retract(layout: Layout) -> None:
    """Takes `model/` away: there are trainings to come, and which model is best is open until they are evaluated."""
    if exists(layout.model):
        print(f"[train] {layout.model} is taken away: `fusionx eval` will choose among the new models", file=sys.stderr)
        delete_folder(layout.model, FOLDER_SEAL)


def _belongs(file: Path) -> bool:
    """Whether a file is the model's: inference servers take every safetensors file of a folder for its weights."""
    return file.suffix in (_WEIGHTS, *_OTHERS) and file.stem != _SELECTION and file.name != FOLDER_SEAL


def _stands(final: Path, expected: dict[str, str]) -> bool:
    """Whether the folder holds just these files; damage to it is said."""
    if not (final / FOLDER_SEAL).is_file():
        return False
    try:
        return bool(verified(final / FOLDER_SEAL, "it is made anew")[FILES] == expected)
    except DamageError as error:
        print(f"{final} is made anew. {error}", file=sys.stderr, flush=True)
        return False


def _place(file: Path, copy: Path) -> None:
    """Weights take no second space where the filesystem can link; the hub's cache holds links itself."""
    if file.suffix == _WEIGHTS:
        try:
            os.link(file.resolve(), copy)
            return
        except OSError:  # another filesystem, or one without hard links
            pass
    shutil.copyfile(file, copy)
