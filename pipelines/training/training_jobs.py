"""Plans and starts the trainings of a run: the learning rate first, then every method at every seed.

`pipelines.training.launcher` starts them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionx.contract.errors import EXIT_COMPLETE, EXIT_STOPPED, ConfigError, DataError, IncompleteError, StoppedError
from fusionx.contract.files.storage import is_local
from fusionx.contract.models.gguf_folder import dequantised_from
from fusionx.contract.models.place import loadable
from fusionx.contract.shards.document_end import document_end
from fusionx.contract.shards.manifest import has_manifest, read_manifest
from fusionx.contract.tokens.chat import CHAT, given_template, load_chat_encoder
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.contract.weights import weights_identity
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.training.launcher import Launcher
from fusionx.train.config import BASELINE, TrainJob
from fusionx.train.distributed.ranks import is_main_process, launched_ranks
from fusionx.train.state.result import finished_result


@dataclass(frozen=True)
class Tuning:
    """The learning-rate search: one row per method and rate.

    rates: each tuned method's, the one with the lowest best validation bits per byte, and those that methods have of
    their own. default: any other method's.
    """

    rows: list[dict[str, Any]]
    rates: dict[str, float]
    default: float

    def rate(self, method: str) -> float:
        return self.rates.get(method, self.default)


def train_all(
    config: FusionConfig,
    layout: Layout,
    overwrite: bool = False,
    resume: Path | None = None,
    before: Callable[[], None] = lambda: None,
) -> int:
    """Trains everything that the config asks for and has no valid result yet; returns how many trainings that were.

    Args:
        resume: a checkpoint that its training goes on from; the others, and without it all, go on from their last.
        before: called before a search's trainings and before the methods', if there are any to do.

    Raises:
        ConfigError: `resume` is no checkpoint of a training that is still to do.
        IncompleteError: some trainings failed; the others are finished and kept.
        StoppedError: a signal asked for it.
    """
    packed = dequantised_from(loadable(config.target.path, config.target.revision))
    if packed is not None and is_main_process():
        print(f"[train] the target is unpacked from {packed}; what is trained is not quantised", file=sys.stderr)
    if resume is not None:
        _verify_checkpoint(resume, config, layout)
    searches = tuning_jobs(config, layout)
    to_do = count_unfinished(searches)
    if to_do:
        before()
    tune(config, layout, overwrite, resume)
    jobs = planned_jobs(config, layout)
    to_do += count_unfinished(jobs)
    if to_do:
        before()
    if resume is not None and not any(_own(job, resume) for job in [*searches, *jobs]):
        raise _no_checkpoint(resume, jobs)  # of a rate that the search, just finished, did not choose
    run_jobs(jobs, config.train.jobs, overwrite, resume)
    return to_do


def tune(config: FusionConfig, layout: Layout, overwrite: bool = False, resume: Path | None = None) -> Tuning:
    """Carries out the learning-rate search, if the config asks for one."""
    run_jobs(tuning_jobs(config, layout), config.train.jobs, overwrite, resume)
    tuning = read_tuning(config, layout)
    tried = config.train.tune
    own = config.train.own_rates()
    for method, rate in tuning.rates.items():
        if method not in own and len(tried) > 2 and rate in (min(tried), max(tried)) and is_main_process():
            print(f"[train] {method}'s best rate, {rate:g}, is at the edge of train.tune; widen it", file=sys.stderr)
    return tuning


def _verify_checkpoint(resume: Path, config: FusionConfig, layout: Layout) -> None:
    """Before anything runs.

    Raises:
        ConfigError: `resume` is no checkpoint of a training that this config has still to do.
    """
    try:
        planned = planned_jobs(config, layout)
    except DataError:  # the rate is not chosen yet: it may be any
        rates = config.train.tune or [config.train.optimizer.learning_rate]
        planned = [
            job for rate in rates for job in _all_methods(config, layout, Tuning([], config.train.own_rates(), rate))
        ]
    jobs = [*tuning_jobs(config, layout), *planned]
    owners = [job for job in jobs if _own(job, resume)]
    if not owners or not (resume / "state.json").is_file():
        raise _no_checkpoint(resume, planned)
    if finished_result(owners[0]) is not None:
        raise ConfigError(
            "The checkpoint's training is finished.",
            field="--resume",
            found=resume,
            expected="a checkpoint of a training without result.json",
            remedy=f"leave --resume out, or delete {owners[0].output}/result.json to train on from there",
        )


def _no_checkpoint(resume: Path, jobs: Sequence[TrainJob]) -> ConfigError:
    return ConfigError(
        "This is no checkpoint of this config's trainings.",
        field="--resume",
        found=resume,
        expected=f"a folder like {jobs[0].output}/checkpoints/step-00000100, with its state.json",
    )


def refuse_launched(layout: Layout) -> None:
    """Processes that torchrun or srun started read each other's checkpoints.

    Raises:
        ConfigError: this is one of them, and `output` is no local folder.
    """
    if launched_ranks() is not None:
        refuse_object_store(layout, "Trainings under torchrun or srun")


def refuse_object_store(layout: Layout, work: str) -> None:
    """
    Raises:
        ConfigError: `output` is no local folder, which this `work` needs.
    """
    if not is_local(layout.root):
        raise ConfigError(
            f"{work} cannot write to an object store.",
            field="output",
            found=layout.root,
            expected="a local folder, shared by all machines that train",
            remedy="copy the finished data stages (chunks, logits, aligned) to such a folder and set output to it; or "
            "train on one machine with `fusionx train`",
        )


def read_tuning(config: FusionConfig, layout: Layout) -> Tuning:
    """The finished learning-rate search; without `train.tune` the configured rate.

    Raises:
        DataError: a training of the search has no result yet.
    """
    if not config.train.tune:
        return Tuning([], config.train.own_rates(), config.train.optimizer.learning_rate)
    columns = ("best_bits_per_byte", "last_bits_per_byte", "best_step")
    rows: list[dict[str, Any]] = []
    best: dict[str, dict[str, Any]] = {}
    for job in tuning_jobs(config, layout):
        result = finished_result(job)
        if result is None:
            raise _no_result(job)
        row = {"method": job.method_name, "learning_rate": job.optimizer.learning_rate}
        rows.append(row | {column: result[column] for column in columns})
        best[job.method_name] = min(best.get(job.method_name, rows[-1]), rows[-1], key=lambda row: row[columns[0]])
    rates = {method: row["learning_rate"] for method, row in best.items()} | config.train.own_rates()
    return Tuning(rows, rates, rates[BASELINE])


def tuning_jobs(config: FusionConfig, layout: Layout) -> list[TrainJob]:
    """The trainings of the learning-rate search: the baseline, or every method, at every rate, with the first seed;
    without those whose rate is named."""
    train = config.train
    return [
        make_job(config, layout, method, train.seeds[0], rate) for method in train.searched() for rate in train.tune
    ]


def planned_jobs(config: FusionConfig, layout: Layout) -> list[TrainJob]:
    """Every method at every seed, at its learning rate.

    Raises:
        DataError: the learning rate is not chosen yet.
    """
    return _all_methods(config, layout, read_tuning(config, layout))


def _all_methods(config: FusionConfig, layout: Layout, tuning: Tuning) -> list[TrainJob]:
    train = config.train
    return [
        make_job(config, layout, method, seed, tuning.rate(method)) for seed in train.seeds for method in train.methods
    ]


def finished_jobs(config: FusionConfig, layout: Layout) -> list[TrainJob]:
    """`planned_jobs`, all of which have their result.

    Raises:
        DataError: one of them has none.
    """
    jobs = planned_jobs(config, layout)
    for job in jobs:
        if finished_result(job) is None:
            raise _no_result(job)
    return jobs


def _no_result(job: TrainJob) -> DataError:
    return DataError("A training has no result.", file=job.output, remedy="run `fusionx train` first")


def count_unfinished(jobs: Sequence[TrainJob]) -> int:
    """Those that `run_jobs` would train."""
    unfinished = 0
    for job in jobs:
        try:
            unfinished += finished_result(job) is None
        except DataError:  # another training's result; `run_jobs` refuses it or makes it anew
            unfinished += 1
    return unfinished


def make_job(config: FusionConfig, layout: Layout, method_name: str, seed: int, learning_rate: float) -> TrainJob:
    """One training's job, with the digests of all its inputs.

    Raises:
        DataError: an input of the training is missing or unfinished.
    """
    method = config.train.method(method_name)
    target = config.target
    tokens = layout.tokens(target.id)
    inputs = {"tokens": read_manifest(tokens, "tokens", "align").digest}
    aligned = {}
    if method.teacher != "none":
        aligned = {model.id: layout.aligned(target.id, method.alignment, model.id) for model in config.models}
        inputs |= {name: read_manifest(folder, "aligned", "align").digest for name, folder in aligned.items()}
    return TrainJob(
        method_name=method_name,
        method=method,
        seed=seed,
        optimizer=config.train.optimizer_of(method_name).model_copy(update={"learning_rate": learning_rate}),
        run=config.train.run,
        target=target.id,
        target_path=target.path,
        target_revision=target.revision,
        chat_template=given_template(target.chat_template),
        target_weights=weights_identity(target.path, target.revision),
        sources={model.id: {"path": model.path, "revision": model.revision or ""} for model in config.models},
        corpus=config.corpus.dataset or config.corpus.path or "",
        tokens=tokens,
        aligned=aligned,
        end_id=_end_id(config, layout),
        inputs=inputs,
        output=layout.training(method_name, learning_rate, seed),
    )


def _end_id(config: FusionConfig, layout: Layout) -> int | None:
    """The token that ends documents for the target, as its own distributions show, where these are there; of a chat the
    one that its template puts behind an answer."""
    logits, target = layout.logits(config.target.id), config.target
    if config.corpus.format == CHAT and config.train.optimizer.document_end != "none":
        return load_chat_encoder(target.id, target.path, target.revision, target.chat_template).end_id
    if config.train.optimizer.document_end == "none" or not has_manifest(logits):
        return None
    special = load_encoder(target.path, target.revision).table.special_role
    return document_end(logits, read_manifest(logits, "logits", "precompute").digest, frozenset(special))


def run_jobs(
    jobs: Sequence[TrainJob], at_once: int, overwrite: bool, resume: Path | None = None
) -> list[dict[str, Any]]:
    """Results of the jobs in order; finished ones are only read.

    Raises:
        IncompleteError: at least one training failed, after all others ended, asked to stop or not.
        StoppedError: a signal asked for it, and none failed; the trainings that ran have saved their work.
    """
    if not jobs:
        return []
    with Launcher(at_once, jobs[0].run.device).listening() as launcher, ThreadPoolExecutor(launcher.at_once) as pool:
        codes = list(pool.map(lambda job: launcher.run(job, overwrite, _own(job, resume)), jobs))
    failed = [job for job, code in zip(jobs, codes, strict=True) if code not in (EXIT_COMPLETE, EXIT_STOPPED)]
    stopped = [job for job, code in zip(jobs, codes, strict=True) if code == EXIT_STOPPED]
    if failed:
        raise IncompleteError(
            f"{len(failed)} of {len(jobs)} trainings failed; the others are kept.",
            file=failed[0].output,
            found="the errors above",
            remedy="mend the cause and run `fusionx train` again; trainings go on from their last checkpoint",
        )
    if stopped:
        raise StoppedError(
            "The trainings were stopped by a signal.",
            file=stopped[0].output,
            found=f"{len(jobs) - len(stopped)} of {len(jobs)} finished; those that had begun have saved a checkpoint",
            remedy="run the same command again: it goes on from there",
        )
    return [finished_result(job) or {} for job in jobs]


def _own(job: TrainJob, resume: Path | None) -> Path | None:
    """The checkpoint that the user named, if it is this job's."""
    if resume is None or resume.resolve().parent != (Path(job.output) / "checkpoints").resolve():
        return None
    return resume
