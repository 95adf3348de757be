"""What of a run is done, missing, damaged or stale, and why. Changes nothing; takes seconds, however much there is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from posixpath import dirname
from typing import Literal

from fusionx.align.aligned_stage import AlignedStage
from fusionx.align.fidelity import held_out, shares
from fusionx.contract.errors import DamageError, DataError, FusionXError
from fusionx.contract.files.storage import exists, join, list_tree
from fusionx.contract.shards.manifest import has_manifest, read_manifest
from fusionx.contract.shards.parts import PartEntry, inspect_part, read_provenance
from fusionx.contract.stage import Stage, Unit
from fusionx.eval.report.tables.cells import percent, signed
from fusionx.eval.report.teaching import Figures, standing
from fusionx.eval.results.benchmark_scores import BenchmarkScores
from fusionx.eval.results.evaluation import Evaluation
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.evaluation.aligned_figures import fidelity_figures
from fusionx.pipelines.evaluation.ensembles import rival_files
from fusionx.pipelines.evaluation.evaluate_models import EvaluationJob, all_models
from fusionx.pipelines.evaluation.recommended_model import choice_files
from fusionx.pipelines.pipeline import Pipeline
from fusionx.pipelines.training.training_jobs import planned_jobs, tuning_jobs
from fusionx.train.config import TrainJob
from fusionx.train.state.result import finished_result

HARNESS_TASKS = {"cs": 6, "bbh": 27, "mmlu": 57}
"""Tasks per benchmark of lm-evaluation-harness, told without the harness, which would take seconds to say it."""

FOOTERS_READ = 256
"""Parts of a stage that are opened, spread evenly over all of them, unless every one is verified."""

Block = Literal["inputs", "alignment", "models"]
"""What is printed together."""


@dataclass
class StageStatus:
    """Counts of a stage's units, and the first reason why not all are done.

    Units are parts, trainings, or the scores that `eval` writes. `warning` is of what is there, not of what is missing.
    """

    name: str
    done: int = 0
    missing: int = 0
    damaged: int = 0
    stale: int = 0
    why: str = ""
    note: str = ""
    warning: str = ""
    block: Block = "inputs"

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
        warning = f"  WARNING: {self.warning}" if self.warning else ""
        return f"{self.name:<32} {state:<11} {counts}{remarks}{warning}"


class _StaleFolders:
    """Outputs that are stale, in themselves or because of what they were made from; and what of them was made."""

    def __init__(self) -> None:
        self._because: dict[str, str] = {}
        """Folder -> the stage to blame."""

    def of(self, *inputs: str) -> str | None:
        """The stage whose being stale makes what was made from these folders stale, too."""
        return next((self._because[folder] for folder in inputs if folder in self._because), None)

    def add(self, output: str, stage: str) -> None:
        self._because[output] = stage

    def carry(self, found: StageStatus, output: str, *inputs: str) -> StageStatus:
        """Notes in `found` what its inputs say, and remembers what it says of its output."""
        stage = self.of(*inputs)
        if stage is not None and found.done:
            found.done, found.stale = 0, found.stale + found.done
            found.why = found.why or f"made from {stage}, which is stale"
        if stage is not None or found.stale:
            self.add(output, stage or found.name)
        return found


def status(pipeline: Pipeline, verify: bool = False) -> Iterator[StageStatus]:
    """Stage after stage, in the order of the pipeline: what alignment left of the sources before what is trained.

    Args: verify: read every byte of every part and check it against its hash. Otherwise parts are looked at by name
        and size, and the footers of `FOOTERS_READ` of each stage say what they were made from.
    """
    config, stale = pipeline.config, _StaleFolders()
    chunks = pipeline.chunk_stage()
    yield stale.carry(_stage(chunks, verify), chunks.output)
    for model in config.models:
        logits = pipeline.logits_stage(model)
        yield stale.carry(_stage(logits, verify), logits.output, logits.chunks)
    tokens = pipeline.tokens_stage()
    yield stale.carry(_stage(tokens, verify), tokens.output, tokens.chunks)
    for method in config.align.methods:
        of_target: Figures = {}
        for model in config.models:  # the target is the first
            stage = pipeline.aligned_stage(method, model)
            found = stale.carry(_stage(stage, verify), stage.output, stage.logits, stage.target_logits, stage.tokens)
            of_source = _costs(stage, found, of_target)
            of_target = of_source if model.id == config.target.id else of_target
            yield found
    yield _trainings(pipeline, stale)
    yield _evaluations(pipeline, stale)


def _stage(stage: Stage, verify: bool) -> StageStatus:
    found = StageStatus(stage.name)
    try:
        units = list(stage.units())
        sizes, listed = list_tree(stage.output), _listed(stage)
        step = 1 if verify else max(1, -(-len(units) // FOOTERS_READ))
        for number, unit in enumerate(units):
            if unit.part not in sizes:
                found.missing += 1
                continue
            entry = listed.get(unit.part)
            if entry is not None and entry.bytes != sizes[unit.part]:
                state, why = "damaged", f"{sizes[unit.part]:,} bytes, its manifest says {entry.bytes:,}"
            elif number % step:
                state, why = "done", ""
            else:
                state, why = _opened(stage, unit, entry.sha256 if entry else None, verify)
            setattr(found, state, getattr(found, state) + 1)
            found.why = found.why or (f"{unit.part}: {why}" if why else "")
        if step > 1:
            found.note = f"what one in {step:,} was made from was looked up; --verify reads them all"
    except FusionXError as error:
        found.why = _reason(error)
    return found


def _listed(stage: Stage) -> dict[str, PartEntry]:
    """What a finished output's manifest says of its parts; nothing without one.

    Raises:
        DataError: the manifest is damaged or of another kind.
    """
    if not has_manifest(stage.output):
        return {}
    return {part.name: part for part in read_manifest(stage.output, stage.kind, stage.name).parts}


def _opened(stage: Stage, unit: Unit, sha256: str | None, verify: bool) -> tuple[str, str]:
    """A part's state and the reason, from its footer or, with `verify`, from all its bytes."""
    path = join(stage.output, unit.part)
    try:
        provenance = inspect_part(path, sha256).provenance if verify else read_provenance(path)
    except DataError as error:
        return "damaged", error.problem
    changed = stage.differences(provenance, unit)
    return ("stale", changed[0]) if changed else ("done", "")


def _costs(stage: AlignedStage, found: StageStatus, of_target: Figures) -> Figures:
    """What the alignment costs, once it is complete: noted in `found`, beside the target's by the same method."""
    found.block = "alignment"
    if not (found.complete and has_manifest(stage.output)):
        return {}
    split, stats = held_out(read_manifest(stage.output, stage.kind, stage.name))
    figures = fidelity_figures(stats["fidelity"])
    said = [_bits(figures[""])] if figures else ["nothing judged"]
    beside = standing(figures, of_target)
    if beside is not None:
        said.append(f"better than the target in {len(beside.better)} of {beside.domains} domains")
        found.warning = " and ".join(beside.remarks())
    dropped = shares(stats["status"])["not_aligned"]
    if dropped >= 5e-4:
        said.append(f"{percent(dropped)} of positions not aligned")
    found.note = "; ".join(filter(None, [found.note, f"{split}: {said[0]}", *said[1:]]))
    return figures


def _bits(found: Mapping[str, float]) -> str:
    own, aligned = found["own_bits_per_byte"], found["aligned_bits_per_byte"]
    cost, right = signed(found["cost"], 3), percent(found["hits"])
    blind = "" if math.isnan(found["blind_hits"]) else f" ({percent(found['blind_hits'])} blind)"
    return f"own {own:.3f}, aligned {aligned:.3f} ({cost}) bits per byte; right {right}{blind}"


def _trainings(pipeline: Pipeline, stale: _StaleFolders) -> StageStatus:
    found = StageStatus("train", block="models")
    try:
        for job in tuning_jobs(pipeline.config, pipeline.layout):
            _training(job, found, stale)
        for job in planned_jobs(pipeline.config, pipeline.layout):
            _training(job, found, stale)
    except FusionXError as error:
        found.why = _reason(error)
    return found


def _training(job: TrainJob, found: StageStatus, stale: _StaleFolders) -> None:
    stage = stale.of(job.tokens, *job.aligned.values())
    try:
        finished = finished_result(job) is not None
        why = "" if stage is None or not finished else f"made from {stage}, which is stale"
    except DamageError as error:
        found.damaged, found.why = found.damaged + 1, found.why or _reason(error)
        return
    except DataError as error:
        finished, why = True, f"{job.output}: {error.details.get('field', error.problem)} changed"
    if why:
        stale.add(job.output, stage or found.name)
        found.stale, found.why = found.stale + 1, found.why or why
    else:
        found.done, found.missing = found.done + finished, found.missing + (not finished)


def _evaluations(pipeline: Pipeline, stale: _StaleFolders) -> StageStatus:
    """Evaluations of models, benchmark tasks, ensembles and models beside them; each kind's counts are in the note."""
    config, layout, found = pipeline.config, pipeline.layout, StageStatus("eval", block="models")
    jobs: list[TrainJob] = []
    beside: list[str] = []
    with _missing_on_error(found):
        jobs = planned_jobs(config, layout)
    models = list(all_models(config, layout, jobs))
    evaluations = [item.output for item in models]
    _count(found, "models", *_existing(evaluations))
    for item in models:
        training = [dirname(item.source)] if isinstance(item.source, str) else []
        _withdraw(found, [item.output], stale.of(layout.chunks, *training))
    with _missing_on_error(found):
        _count(found, "benchmark tasks", *_benchmark_tasks(pipeline, models))
    with _missing_on_error(found):
        ensembles, beside = rival_files(config, layout, jobs)
        _count(found, "ensembles", *_existing(ensembles))
        methods, target = config.align.methods, config.target.id
        aligned = [layout.aligned(target, method, model.id) for method in methods for model in config.models]
        _withdraw(found, ensembles, stale.of(layout.chunks, *aligned))
        others = [path for path in beside if path not in evaluations]  # counted above where the split is the same
        _count(found, "models beside them", *_existing(others))
        _withdraw(found, others, stale.of(layout.chunks))
    with _missing_on_error(found):
        others = [path for path in choice_files(config, layout, jobs) if path not in [*evaluations, *beside]]
        _count(found, "models on validation text", *_existing(others))
        _withdraw(found, others, stale.of(layout.chunks))
    return found


@contextmanager
def _missing_on_error(found: StageStatus) -> Iterator[None]:
    """What an error keeps from being counted is not done."""
    try:
        yield
    except FusionXError as error:
        found.missing, found.why = found.missing + 1, found.why or _reason(error)


def _count(found: StageStatus, kind: str, done: int, planned: int) -> None:
    found.done, found.missing = found.done + done, found.missing + planned - done
    if planned:
        found.note += f"{', ' if found.note else ''}{kind}: {done} of {planned}"


def _withdraw(found: StageStatus, files: Sequence[str], stage: str | None) -> None:
    """Counts as stale those of the files that were counted as done, if there is a stage to blame."""
    count = _existing(files)[0] if stage is not None else 0
    if count:
        found.done, found.stale = found.done - count, found.stale + count
        found.why = found.why or f"made from {stage}, which is stale"


def _existing(files: Sequence[str]) -> tuple[int, int]:
    return sum(map(exists, files)), len(files)


def _benchmark_tasks(pipeline: Pipeline, models: Sequence[EvaluationJob]) -> tuple[int, int]:
    """How many tasks have a score of a model's very weights, as its evaluation tells them, and how many there are."""
    scores = BenchmarkScores.load(pipeline.layout.benchmarks)
    planned = {name: _planned_tasks(pipeline.config, name, scores) for name in pipeline.config.eval.benchmarks}
    done = 0
    for item in models:
        if exists(item.output):
            evaluation = Evaluation.load(item.output)
            done += sum(min(_scored(scores, evaluation, name), count) for name, count in planned.items())
    return done, len(models) * sum(planned.values())


def _planned_tasks(config: FusionConfig, benchmark: str, scores: BenchmarkScores) -> int:
    """Where only the harness or a machine's toolchains could tell: as many as some model has, or one."""
    if benchmark in HARNESS_TASKS:
        return HARNESS_TASKS[benchmark]
    if benchmark == "me" and config.eval.code.languages:
        return len(config.eval.code.languages)
    return max([1, *(sum(task.benchmark == benchmark for task in tasks.values()) for tasks in scores.tasks.values())])


def _scored(scores: BenchmarkScores, evaluation: Evaluation, benchmark: str) -> int:
    try:
        return len(scores.joined(evaluation, [benchmark]).tasks) - len(evaluation.tasks)
    except DataError:  # none of them
        return 0


def _reason(error: FusionXError) -> str:
    return error.problem + (f" {error.details['file']}" if "file" in error.details else "")
