"""Makes the demo's inputs in order - corpus, task files, tokenizers, models - and remakes only what has changed.

Every piece has a mark beside it (`done_marks.py`), written last, with a digest of what it depends on: its part of the
config, the seed, and the hashes of the pieces it was made from. Afterwards nothing of the project knows that these are
a demo's
inputs: a folder of Parquet files, Hugging Face model folders, task files.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from fusionx.contract.config import digest_of
from fusionx.contract.errors import ConfigError, IncompleteError
from fusionx.contract.files import done_marks
from fusionx.contract.files.storage import write_bytes
from fusionx.pipelines.demo import corpus as corpus_text
from fusionx.pipelines.demo import models, skills, tokenizers
from fusionx.pipelines.demo.config import DemoInputs, DemoModelConfig, DemoSiblingConfig, Mix

_RULES_VERSION = 3
"""Raised when the rules of gathering, generating or training change what comes out of the same config."""

_PRELOAD = ["torch", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"]
"""Imported once for all trainings; each by itself would take some seconds of a core for it."""


def make_inputs(config: DemoInputs, only: str | None = None) -> None:
    """Makes what is missing or stale of the demo's inputs under `config.output`.

    Args:
        only: `corpus` (with the task files), `models` (all but siblings, as without it), `siblings`, or the id of a
            model or sibling; what these depend on is made as well.

    Raises:
        ConfigError: `only` names nothing of this config.
        IncompleteError: a model's training ended without a result.
    """
    parts = ["corpus", "models", "siblings", *(model.id for model in config.everyone)]
    if only not in {None, *parts}:
        raise ConfigError("There is no such part.", field="--only", found=only, expected=", ".join(parts))
    started = time.monotonic()
    output = Path(config.output)
    corpus_hashes = _make_corpus(config, output)
    _make_tasks(config, output)
    if only != "corpus":
        siblings = [sibling for sibling in config.siblings if only in {"siblings", sibling.id}]
        starts = {sibling.start for sibling in siblings}
        chosen = [model for model in config.models if only in {None, "models", model.id} or model.id in starts]
        prepared = {model.id: _prepare_training(config, model, corpus_hashes, output) for model in chosen}
        _train_missing(config, list(prepared.values()))
        _train_missing(
            config, [_prepare_sibling(config, sibling, prepared[sibling.start], corpus_hashes) for sibling in siblings]
        )
    _say(f"demo inputs are complete in {output} ({time.monotonic() - started:.0f} s)")


def _say(line: str) -> None:
    print(line, flush=True)


def _make_corpus(config: DemoInputs, output: Path) -> dict[str, str]:
    """Gathers and writes the corpus unless it is there; returns the hash of each of its files by its path."""
    piece = output / "corpus"
    digest = digest_of([_RULES_VERSION, config.corpus.content(), config.seed])
    installation = corpus_text.installation()
    if done_marks.is_done(piece, digest):
        mark = done_marks.read_mark(piece)
        assert mark is not None
        if mark["notes"]["installation"] != installation:
            # A corpus is data: once made it stays, or every package that is installed would cost four trainings.
            mark_file = done_marks.mark_path(piece)
            _say(f"corpus: kept as made; installed packages have changed since (remove {mark_file} to renew)")
        return mark["files"]
    _say("corpus: gathering documents from the Python installation")
    corpus = corpus_text.make_corpus(config.corpus, config.seed)
    for folder in (piece, output / "experts"):
        shutil.rmtree(folder, ignore_errors=True)
    files = corpus_text.write_corpus(corpus, output)
    done_marks.write_mark(piece, digest, files, {"installation": installation})
    for domain, pools in corpus.items():
        sizes = ", ".join(f"{name} {sum(len(t.encode()) for t in texts) / 1000:.0f}" for name, texts in pools.items())
        _say(f"corpus: {domain} (KB): {sizes}")
    mark = done_marks.read_mark(piece)
    assert mark is not None
    return mark["files"]


def _make_tasks(config: DemoInputs, output: Path) -> None:
    """Writes `tasks/<skill>.json` unless they are there."""
    import json

    piece = output / "tasks"
    names = list(config.corpus.skills_kb)
    digest = digest_of([_RULES_VERSION, names, config.corpus.task_examples, config.seed])
    if done_marks.is_done(piece, digest):
        return
    shutil.rmtree(piece, ignore_errors=True)
    files = []
    for skill in names:
        examples = skills.task_examples(skill, config.corpus.task_examples, config.seed)
        files.append(piece / f"{skill}.json")
        write_bytes(files[-1], json.dumps({"examples": examples}, indent=1).encode())
        _say(f"tasks: {skill}: {len(examples)} held-out examples")
    done_marks.write_mark(piece, digest, files)


def _prepare_training(
    config: DemoInputs, model: DemoModelConfig, corpus_hashes: dict[str, str], output: Path
) -> models.Training:
    """Makes the model's tokenizer unless it is there, and describes the training that is to follow."""
    pools = _pools(model.mix, corpus_hashes)
    piece = output / "tokenizers" / model.id
    kept = tokenizers.read_tokenizer(model.tokenizer_file, model) if model.tokenizer_file is not None else None
    made_from = [model.mix, config.tokenizer_sample_kb, pools] if kept is None else [kept.to_str()]
    digest = digest_of([_RULES_VERSION, model.tokenizer, model.vocab_size, model.context, *made_from])
    if not done_marks.is_done(piece, digest):
        tokenizer = kept
        if tokenizer is None:
            texts = {domain: corpus_text.read_texts(output / "experts" / f"{domain}.parquet") for domain in pools}
            sample = tokenizers.sample_of_mix(texts, model.mix, config.tokenizer_sample_kb * 1000)
            tokenizer = tokenizers.train_tokenizer(model.tokenizer, sample, model.vocab_size)
        files = tokenizers.save_tokenizer(tokenizer, model.tokenizer, model.context, piece)
        done_marks.write_mark(piece, digest, files)
        _say(f"tokenizers: {model.id}: {model.tokenizer}, {tokenizer.get_vocab_size()} tokens")
    mark = done_marks.read_mark(piece)
    assert mark is not None
    return models.Training(
        inputs=config,
        model=model,
        tokenizer_folder=piece,
        experts_folder=output / "experts",
        output=output / "models" / model.id,
        digest=digest_of(
            [
                _RULES_VERSION,
                model.content(),
                config.optimizer.content(),
                config.dtype,
                config.models_seed,
                pools,
                mark["files"],
            ]
        ),
    )


def _pools(mix: Mix, corpus_hashes: dict[str, str]) -> dict[str, str]:
    """Hash of the experts' text of every domain of a mix."""
    return {domain: corpus_hashes[f"experts/{domain}.parquet"] for domain in sorted(mix)}


def _prepare_sibling(
    config: DemoInputs, sibling: DemoSiblingConfig, start: models.Training, corpus_hashes: dict[str, str]
) -> models.Training:
    """The training that goes on from what `start` makes, with the same tokenizer and the same settings."""
    model = sibling.model_from(start.model)
    return replace(
        start,
        model=model,
        output=start.output.with_name(model.id),
        start=start.output,
        # All else that it depends on is part of its start's digest.
        digest=digest_of([start.digest, model.content(), _pools(model.mix, corpus_hashes)]),
    )


def _train_missing(config: DemoInputs, trainings: list[models.Training]) -> None:
    """Trains what is not made, longest first; on a CPU up to `jobs` at a time, each in its own one-threaded process.

    Raises:
        IncompleteError: a training process failed; the others were finished first.
    """
    missing = [training for training in trainings if not done_marks.is_done(training.output, training.digest)]
    trainings = sorted(missing, key=_cost, reverse=True)
    if config.jobs == 1 or models.pick_device(config.device) == "cuda":
        for training in trainings:
            models.train(training, _say)
            _mark_model(training)
        return
    failed = []
    for training, exit_code in _run_processes(trainings, config.jobs):
        if exit_code == 0:
            _mark_model(training)
        else:
            failed.append(f"{training.model.id} (exit code {exit_code})")
    if failed:
        raise IncompleteError("Some models were not trained.", found=", ".join(failed), remedy="run the same again")


def _cost(training: models.Training) -> int:
    """Training tokens times weights of the blocks: an estimate, only to start the longest first."""
    model = training.model
    return model.training_tokens * model.layers * model.hidden_size**2


@dataclass
class _Running:
    training: models.Training
    process: multiprocessing.process.BaseProcess


def _run_processes(trainings: list[models.Training], jobs: int) -> list[tuple[models.Training, int]]:
    """Runs every training in a process, `jobs` at a time; returns exit codes."""
    from multiprocessing.connection import wait

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    waiting, running, finished = list(trainings), list[_Running](), list[tuple[models.Training, int]]()
    previous = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")}
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                training = waiting.pop(0)
                process = context.Process(target=models.train_in_own_process, args=(training,), daemon=True)
                process.start()
                running.append(_Running(training, process))
            wait([item.process.sentinel for item in running])
            for item in [item for item in running if not item.process.is_alive()]:
                item.process.join()
                running.remove(item)
                finished.append((item.training, item.process.exitcode or 0))
    finally:
        for name, value in previous.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    return finished


def _mark_model(training: models.Training) -> None:
    done_marks.write_mark(
        training.output, training.digest, [path for path in training.output.iterdir() if path.is_file()]
    )
