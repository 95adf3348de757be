"""What trainings and evaluations take on this machine: a few steps of every method on the sample, scaled."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fusionx.contract.errors import FusionXError
from fusionx.contract.shards.manifest import read_manifest
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.pipeline import Pipeline
from fusionx.pipelines.planning.plan import StagePlan, say
from fusionx.pipelines.preflight.doctor import Need
from fusionx.pipelines.training.training_jobs import make_job

if TYPE_CHECKING:
    from fusionx.train.distributed.collectives import World
    from fusionx.train.loop.trainer import Trainer

_NEVER = 10**9
_FEWEST, _MOST = 2, 12
"""Steps that are measured, the first of which is a warm-up."""
_BACKWARD = 3
"""Forward passes that a training step is worth, where none could be measured; what a validation is a part of."""


@dataclass(frozen=True)
class _Speed:
    """Tokens of training text per second of one training, on `gpus` GPUs. origin: empty where it was measured."""

    tokens_per_s: float
    gpus: int = 0
    origin: str = ""


def training_plans(
    pipeline: Pipeline, stages: Sequence[StagePlan], need: Need, seconds: float | None, candidates: Collection[str]
) -> list[StagePlan]:
    """A row per method: all its trainings, with their validations and, where rates are searched, those trainings.

    Args:
        stages: of the data. seconds: for all measurements; None: nothing can be measured here. candidates: whose
            shards of the sample there are; a training is measured with those.
    """
    config = pipeline.config
    train = config.train
    text = next(stage for stage in stages if stage.stage == "align/tokens")
    forward = next(stage for stage in stages if stage.stage == f"precompute/{config.target.id}")
    times = {name: len(train.seeds) for name in train.methods}
    times |= {name: times.get(name, 0) + len(train.tune) for name in train.searched()}
    rows = []
    for name, trainings in times.items():
        speed = None if seconds is None else _measured(pipeline, name, seconds / len(times), candidates)
        if speed is None:
            speed = _Speed(forward.tokens_per_s / _BACKWARD, 0, f"not run here; as {_BACKWARD} forward passes")
        optimizer = train.optimizer_of(name)
        passes = optimizer.epochs * optimizer.data_share
        seen, chunks = passes * text.tokens_of["train"], passes * text.chunks_of["train"]
        blocks = seen / optimizer.pack if optimizer.pack else chunks
        steps = max(1, round(blocks / optimizer.batch_size))
        validations = 2 + steps // train.run.validate_every
        validated = validations * text.tokens_of.get("validation", 0) / _BACKWARD
        hours = trainings * (seen + validated) / speed.tokens_per_s / 3600 / train.jobs
        rows.append(
            StagePlan(
                stage=f"train/{name}",
                chunks=round(trainings * chunks),
                tokens=round(trainings * seen),
                bytes=need.disk * trainings // max(1, sum(times.values())),
                tokens_per_s=speed.tokens_per_s,
                mb_per_s=0.0,
                workers=train.jobs,
                hours=hours,
                cpu_hours=hours * train.jobs * train.run.threads,
                gpu_hours=hours * speed.gpus,
                memory=need.train * train.jobs,
                scaled_from=speed.origin,
            )
        )
    return rows


def _measured(pipeline: Pipeline, name: str, seconds: float, candidates: Collection[str]) -> _Speed | None:
    """A few steps of this method on the sample; None where they cannot be taken, which is said."""
    from fusionx.train.distributed.collectives import process_group
    from fusionx.train.loop.trainer import Trainer

    whole = pipeline.config
    if whole.target.id not in candidates:
        return None
    config = whole.model_copy(update={"sources": [source for source in whole.sources if source.id in candidates]})
    missing = ", ".join(source.id for source in whole.sources if source.id not in candidates)
    say(f"train/{name}: a few steps, {seconds:.0f} s")
    try:
        rate = config.train.optimizer_of(name).learning_rate
        job = make_job(config, pipeline.layout, name, config.train.seeds[0], rate)
        rows = sum(part.rows for part in read_manifest(job.tokens, "tokens", "align").parts_of("train"))
        batch = min(job.optimizer.batch_size, max(1, rows))  # the sample may hold less than a batch
        job = job.model_copy(
            update={
                "optimizer": job.optimizer.model_copy(update={"batch_size": batch, "epochs": 1000.0 * batch}),
                "run": job.run.model_copy(update={"log_every": _NEVER, "loader_workers": 0}),
                "output": str(Path(pipeline.layout.root) / "training"),
            }
        )
        with process_group(job.run.device) as world:
            speed = _stepped(Trainer(job, world), world, seconds)
    except FusionXError as error:
        say(f"train/{name} could not be measured. {error}")
        return None
    fuses = config.train.method(name).teacher != "none"
    return replace(speed, origin=f"without {missing}, not run here: a little too fast") if missing and fuses else speed


def _stepped(trainer: Trainer, world: World, seconds: float) -> _Speed:
    trainer.model.train()
    rates: list[float] = []
    started = time.monotonic()
    for batches in trainer.batches_from(0):
        before = time.monotonic()
        trainer.step(batches)
        if world.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        rates.append(sum(batch.tokens for batch in batches) / (time.monotonic() - before))
        spent = time.monotonic() - started
        if len(rates) >= _MOST or spent > seconds or (len(rates) >= _FEWEST and spent * 1.5 > seconds):
            break
    return _Speed(statistics.median(rates[1:] or rates), int(world.device.type == "cuda"))


def evaluation_plan(config: FusionConfig, stages: Sequence[StagePlan]) -> StagePlan:
    """Forward passes over the held-out text: the target, the sources where they are evaluated, and every training's
    best and last step."""
    by_name = {stage.stage: stage for stage in stages}
    target = by_name[f"precompute/{config.target.id}"]
    exports = 2 * len(config.train.seeds) * len(config.train.methods)
    models = {model.id: 1 for model in config.models} if config.eval.sources else {config.target.id: 1}
    models[config.target.id] += exports
    share = config.precompute.threads / (config.eval.threads or config.precompute.threads)
    chunks = by_name["chunk"].chunks_of.get(config.eval.split, 0)
    tokens = seconds = 0.0
    for name, times in models.items():
        stage = by_name[f"precompute/{name}"]
        held_out = times * chunks * stage.tokens / max(1, stage.chunks)
        tokens += held_out
        seconds += held_out / stage.tokens_per_s * share
    hours = seconds / 3600
    on_gpu = target.gpu_hours > 0
    return StagePlan(
        stage="eval",
        chunks=0,
        tokens=round(tokens),
        bytes=0,
        tokens_per_s=tokens / seconds if seconds else 0.0,
        mb_per_s=0.0,
        workers=1,
        hours=hours,
        cpu_hours=hours * (config.eval.threads or config.precompute.threads),
        gpu_hours=hours if on_gpu else 0.0,
        scaled_from="from the sources' own forward passes",
    )
