"""What can be told of a run before its first unit: all of it at once, within seconds, without loading weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from fusionx.contract.errors import ConfigError, DataError, FusionXError
from fusionx.contract.extras import check_extra
from fusionx.contract.models.place import loadable
from fusionx.contract.shards.manifest import read_manifest
from fusionx.contract.tokens.chat import CHAT, load_chat_encoder
from fusionx.eval.benchmark_runner import check_benchmarks
from fusionx.eval.tasks.exact_match import load_tasks
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.preflight.devices import missing_devices
from fusionx.pipelines.training.training_jobs import planned_jobs, refuse_launched, tuning_jobs
from fusionx.precompute.config import ModelConfig, Split
from fusionx.precompute.corpus.files import check_corpus, files_of
from fusionx.precompute.logits.logits_stage import LogitsStage
from fusionx.precompute.logits.source_model import load_model_config
from fusionx.train.config import TrainJob
from fusionx.train.state.result import finished_result


def refuse(errors: Iterable[FusionXError]) -> None:
    """Raises them together, if there are any.

    Raises:
        FusionXError: the only one; ConfigError: several, told one after the other.
    """
    found = list(errors)
    if len(found) == 1:
        raise found[0]
    if found:
        raise ConfigError("\n".join([f"{len(found)} problems; nothing was started.", *map(str, found)]))


def run_errors(config: FusionConfig, layout: Layout, overwrite: bool = False) -> Iterator[FusionXError]:
    """What would stop the run, now or after hours."""
    yield from missing_devices(config, "precompute", "train", "eval")
    yield from _raised(refuse_launched, layout)
    yield from _corpus_errors(config)
    for model in config.models:
        errors = [*_raised(_check_model, config, layout, model)]
        yield from errors or (_raised(_check_context, config) if model is config.target else [])
    yield from _evaluation_errors(config)
    yield from _package_errors(config)
    if not overwrite:
        yield from _stale_trainings(config, layout)


def _raised(check: Callable[..., object], *arguments: object) -> Iterator[FusionXError]:
    try:
        check(*arguments)
    except FusionXError as error:
        yield error


def _check_model(config: FusionConfig, layout: Layout, model: ModelConfig) -> None:
    stage = LogitsStage(model, config.precompute, layout.chunks, layout.logits(model.id))
    stage.check(config.chunk.block_size)
    if config.corpus.format == CHAT:
        load_chat_encoder(model.id, model.path, model.revision, model.chat_template)


def _check_context(config: FusionConfig) -> None:
    """Whether the target can be trained on rows as long as the run makes them."""
    if config.target.kind == "fake":
        return
    stated: Any = load_model_config(config.target).get_text_config(decoder=True)
    # MPT states its length by a name of its own, and builds its biases for no more.
    context = getattr(stated, "max_position_embeddings", None) or getattr(stated, "max_seq_len", None)
    optimizer, block = config.train.optimizer, config.chunk.block_size
    apart = optimizer.document_mask and not hasattr(stated, "max_seq_len")  # positions begin anew in every chunk
    rows = {"chunk.block_size": block, "train.optimizer.pack": 0 if apart else optimizer.pack or 0}
    for field, length in rows.items():
        if context is not None and length > context:
            raise ConfigError(
                "Rows are longer than the target's context.",
                field=field,
                found=length,
                expected=f"at most {context}, the context of '{config.target.id}'",
                remedy=f"lower {field}; windows (window_overlap) help a source, but no training",
            )


def _corpus_errors(config: FusionConfig) -> Iterator[FusionXError]:
    """A split that the run reads and the corpus lacks, as its files are named."""
    corpus, read = config.corpus, dict.fromkeys(("train", "validation", config.eval.split))
    missing = [*_raised(check_corpus, corpus)]
    yield from missing
    if missing:
        return
    for split in read:
        held_out = split != "train" and corpus.holdout.get(split, 0) > 0
        if held_out or (split in corpus.splits and _has_files(config, split)):
            continue
        yield ConfigError(
            f"The corpus has no {split} text.",
            file=corpus.path or corpus.dataset,
            field="corpus.splits" if split not in corpus.splits else "corpus.path",
            found=f"corpus.splits {corpus.splits}, corpus.holdout {corpus.holdout or 'none'}",
            expected=f"files whose name or folder begins with {split}, or a share of the training text",
            remedy="set corpus.holdout to {validation: 0.01, test: 0.01}"
            + ("" if split == "validation" else ", or eval.split to validation"),
        )
    if "train" not in config.precompute.splits and any(
        config.train.method(name).teacher != "none" for name in config.train.methods
    ):
        yield ConfigError(
            "The sources do not read the training text.",
            field="precompute.splits",
            found=config.precompute.splits,
            expected="train among them, since a method has a teacher",
        )


def held_out_errors(config: FusionConfig, layout: Layout) -> Iterator[FusionXError]:
    """What the corpus, once it is cut, has no text of: small shares of few documents may be nobody's."""
    parts = read_manifest(layout.chunks, "chunks", "chunk").parts
    for split in dict.fromkeys(("validation", config.eval.split)):
        if not any(part.split == split and part.rows for part in parts):
            yield DataError(
                f"No {split} text came of the corpus.",
                file=layout.chunks,
                field="corpus.holdout",
                found=f"{config.corpus.holdout or 'none'}, and {sum(part.rows for part in parts)} chunks in all",
                expected="some documents of every split: shares are drawn by the hash of the text",
                remedy="raise the share, as in `--set corpus.holdout={validation: 0.1, test: 0.1}`, with --overwrite",
            )


def _has_files(config: FusionConfig, split: Split) -> bool:
    """True for the hub, which is asked when the run reads it."""
    if config.corpus.path is None:
        return True
    try:
        return bool(files_of(config.corpus, split))
    except DataError:  # nothing there that can be read: the chunk stage says what there is
        return False


def _evaluation_errors(config: FusionConfig) -> Iterator[FusionXError]:
    yield from _raised(load_tasks, config.eval)
    yield from _raised(check_benchmarks, config.eval)
    for name, path in config.eval.rivals.items():
        for error in _raised(loadable, path):
            yield ConfigError(error.problem, **error.details | {"field": f"eval.rivals.{name}"})
    beside = [*config.eval.rivals, *config.eval.merge_rows]
    if beside and not {config.eval.split, "validation"} & {*config.precompute.splits}:
        yield ConfigError(
            "Rivals are compared on a held-out split that the sources have read, too.",
            field="precompute.splits",
            found=f"{config.precompute.splits}, and the rivals {', '.join(beside)}",
            expected=f"{config.eval.split} or validation among them",
        )
    if config.eval.merges:
        from fusionx.pipelines.evaluation.merging import check_merges

        yield from _raised(check_merges, config)


def _package_errors(config: FusionConfig) -> Iterator[FusionXError]:
    run, optimizer, evaluation = config.train.run, config.train.optimizer, config.eval
    harness = [name for name in evaluation.benchmarks if name != "me"]
    asked = {
        ("peft", "lora", "train.optimizer.lora"): optimizer.lora,
        ("tensorboard", "logging", "train.run.tensorboard"): run.tensorboard,
        ("wandb", "wandb", "train.run.wandb"): run.wandb,
        ("mlflow", "mlflow", "train.run.mlflow"): run.mlflow,
        ("mergekit", "merge", "eval.merges"): evaluation.merges,
        ("lm_eval", "harness", "eval.benchmarks"): harness,
    }
    for names, wanted in asked.items():
        if wanted:
            yield from _raised(check_extra, *names)


def _stale_trainings(config: FusionConfig, layout: Layout) -> Iterator[FusionXError]:
    """Folders that hold another training's result; none can be told before the data that trainings read is there."""
    jobs: dict[str, TrainJob] = {}
    for plan in (tuning_jobs, planned_jobs):
        with suppress(FusionXError):  # the data stages are not done, or the rate is not chosen
            jobs |= {job.output: job for job in plan(config, layout)}
    for job in jobs.values():
        yield from _raised(finished_result, job)
