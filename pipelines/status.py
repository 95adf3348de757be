"""What of a run is done, missing, damaged or stale, and why. Reads everything, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from align.aligned_stage import AlignedStage
from align.fidelity import shares, summary
from contract.errors import DataError, FusionXError
from contract.manifest import Manifest, build_manifest, has_manifest, read_manifest
from contract.shard import inspect_part
from contract.stage import Stage
from contract.storage import exists, join
from pipelines.evaluation import STEPS, evaluation_of
from pipelines.road import Road
from pipelines.training import planned_jobs, tuning_jobs
from train.config import TrainJob
from train.result import finished_result


@dataclass
class StageStatus:
    """Counts of a stage's units (parts, trainings or evaluations), and the first reason why not all are done."""

    name: str
    done: int = 0
    missing: int = 0
    damaged: int = 0
    stale: int = 0
    why: str = ""
    note: str = ""

    @property
    def complete(self) -> bool:
        return self.done > 0 and not (self.missing or self.damaged or self.stale)

    def line(self) -> str:
        state = "complete" if self.complete else "incomplete"
        counts = ", ".join(
            f"{count} {name}"
            for name in ("done", "missing", "damaged", "stale")
            if (count := getattr(self, name)) or name == "done"
        )
        remarks = "".join(f"  ({text})" for text in (self.why, self.note) if text)
        return f"{self.name:<32} {state:<11} {counts}{remarks}"


def status(road: Road) -> Iterator[StageStatus]:
    """Stage after stage, in the order of the road."""
    config = road.config
    yield _stage(road.chunk_stage())
    for model in config.models:
        yield _stage(road.logits_stage(model))
    yield _stage(road.tokens_stage())
    for mode in config.align.maps:
        for model in config.models:
            yield _aligned(road.aligned_stage(mode, model))
    yield from _trainings(road)


def _stage(stage: Stage) -> StageStatus:
    found = StageStatus(stage.name)
    try:
        for unit in stage.units():
            path = join(stage.output, unit.part)
            if not exists(path):
                found.missing += 1
                continue
            try:
                changed = stage.differences(inspect_part(path).provenance, unit)
            except DataError as error:
                found.damaged += 1
                found.why = found.why or f"{unit.part}: {error.problem}"
                continue
            if changed:
                found.stale += 1
                found.why = found.why or f"{unit.part}: {changed[0]}"
            else:
                found.done += 1
    except FusionXError as error:
        found.why = _reason(error)
    return found


def _aligned(stage: AlignedStage) -> StageStatus:
    """With what the alignment costs, once it is complete."""
    found = _stage(stage)
    if found.complete and has_manifest(stage.output):
        split, stats = held_out(read_manifest(stage.output, stage.kind, stage.name))
        share = 1 - shares(stats["status"])["not_aligned"]
        told = summary(stats["fidelity"])
        found.note = (
            f"{split}: {share:.1%} of positions aligned; bits per byte: own {told['own_bits_per_byte']:.3f}, "
            f"aligned {told['aligned_bits_per_byte']:.3f} ({told['cost']:+.3f}); right {told['hits']:.1%}"
        )
    return found


def held_out(aligned: Manifest) -> tuple[str, dict[str, Any]]:
    """The split by which alignment is judged, and the statistics of its parts, summed up.

    It is `validation`; another one where `precompute.splits` leaves that out.
    """
    split = "validation" if aligned.parts_of("validation") else aligned.parts[0].split
    judged = build_manifest(aligned.kind, aligned.config, aligned.identity, aligned.parts_of(split))
    return split, judged.stats


def _trainings(road: Road) -> Iterator[StageStatus]:
    training, evaluation = StageStatus("train"), StageStatus("eval")
    try:
        for job in tuning_jobs(road.config, road.layout):
            _training(job, training)
        for job in planned_jobs(road.config, road.layout):
            _training(job, training)
            for step in STEPS:
                written = exists(evaluation_of(road.layout, job, step))
                evaluation.done, evaluation.missing = evaluation.done + written, evaluation.missing + (not written)
    except FusionXError as error:
        training.why = _reason(error)
    yield training
    yield evaluation


def _training(job: TrainJob, found: StageStatus) -> None:
    try:
        finished = finished_result(job) is not None
    except DataError as error:
        found.stale += 1
        found.why = found.why or f"{job.output}: {error.details.get('field', error.problem)} changed"
        return
    found.done, found.missing = found.done + finished, found.missing + (not finished)


def _reason(error: FusionXError) -> str:
    return error.problem + (f" {error.details['file']}" if "file" in error.details else "")
