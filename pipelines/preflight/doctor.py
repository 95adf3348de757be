"""`fusionx doctor`: the machine, and whether it can carry out a config: models, memory, disk, cluster, hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fusionx.contract.errors import FusionXError
from fusionx.contract.files.storage import plain
from fusionx.contract.models.hub import is_offline, may_be_on_hub
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.eval.report.tables.cells import bytes_text
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.model_description import ModelDescription, describe_model
from fusionx.pipelines.preflight.finding import Finding
from fusionx.pipelines.preflight.machine import (
    Memory,
    disk_finding,
    machine_findings,
    memory_here,
    ray_finding,
    version_findings,
)
from fusionx.pipelines.preflight.run_checks import run_errors
from fusionx.precompute.config import ModelConfig

_STORED = {"bfloat16": 2, "float16": 2}
_STATE = 12
"""Bytes of a checkpoint per trained parameter: fp32 weights and AdamW's two moments."""
_EXPORTS = 2
"""Models that a training leaves: its best and its last step."""


def examine(config: FusionConfig | None = None, overwrite: bool = False) -> Iterator[Finding]:
    """Everything that can be found out without loading weights; of the machine alone, or for a run on it."""
    memory = memory_here()
    yield from machine_findings(memory)
    yield from version_findings()
    if config is None:
        return
    yield ray_finding(config.executor)
    yield from _hub_finding(config)
    models = described_models(config)
    yield from (_model_finding(model, models[model.id]) for model in config.models if model.id in models)
    yield from _target_finding(config, models)
    need = Need.of(config, models)
    if config.target.id in models:
        yield from need.findings(config, memory)
    yield disk_finding(config.output, need.disk)
    errors = list(run_errors(config, Layout(plain(config.output)), overwrite))
    for error in errors:
        yield Finding.of(error.details.get("field", "config").split(",")[0], error)
    if not errors:
        yield Finding(
            "ok", "config", f"{config.name}: corpus, models, devices, tasks and packages are what it asks for"
        )


def described_models(config: FusionConfig) -> dict[str, ModelDescription]:
    """The candidates by name, but those that cannot be described: whatever runs them says why."""
    models: dict[str, ModelDescription] = {}
    for model in config.models:
        if model.kind == "fake":
            continue
        try:
            models[model.id] = describe_model(model.path, model.revision, tokenizer=False)
        except FusionXError:
            continue
    return models


def _hub_finding(config: FusionConfig) -> Iterator[Finding]:
    wanted = [model.path for model in config.models if may_be_on_hub(model.path)]
    wanted += [config.corpus.dataset] if config.corpus.dataset else []
    if wanted and is_offline():
        remedy = "unset HF_HUB_OFFLINE, check network and proxy, or fetch them elsewhere with `hf download`"
        yield Finding("warning", "hub", f"not reached; only its cache is used, for {', '.join(wanted)}", remedy)
    elif wanted:
        yield Finding("ok", "hub", "answers")


def _model_finding(model: ModelConfig, found: ModelDescription) -> Finding:
    why_not = "" if found.source.possible else found.source.reason
    tokens = found.tokens.size if found.tokens else 0
    if not (found.tokens or why_not):
        try:  # its kept table, which the checks of the run need as well: reading the tokenizer itself takes seconds
            tokens = load_encoder(model.path, model.revision).table.size
        except FusionXError as error:
            why_not = f"no tokenizer: {error.details.get('found', error.problem)}"
    if why_not:
        return Finding("problem", model.id, f"cannot be a source: {why_not}", f"`fusionx inspect model {found.path}`")
    size = "of unknown size" if found.parameters is None else f"{found.parameters:,} parameters"
    context = "no limit stated" if found.context is None else f"context {found.context:,}"
    said = f"{found.architecture}, {size}, {tokens:,} tokens, {context}, licence {found.licence or 'not stated'}"
    return Finding("ok", model.id, said)


def _target_finding(config: FusionConfig, models: dict[str, ModelDescription]) -> Iterator[Finding]:
    found = models.get(config.target.id)
    if found is not None and found.source.possible and not found.target.possible:
        yield Finding("problem", config.target.id, f"cannot be a target: {found.target.reason}", "take another target")


@dataclass(frozen=True)
class Need:
    """Bytes. train: weights, gradients and optimizer of one training. run: weights of each source. disk: what trainings
    leave, and their checkpoints while they run. Activations come on top of the first two."""

    train: int
    run: dict[str, int]
    disk: int

    @classmethod
    def of(cls, config: FusionConfig, models: dict[str, ModelDescription]) -> Need:
        target, train = models.get(config.target.id), config.train
        size = (target and target.parameters) or 0
        trainings = len(train.searched()) * len(train.tune) + len(train.methods) * len(train.seeds)
        stored = _STORED.get(target.dtype, 4) if target else 4
        frozen = train.optimizer.lora is not None
        exports = trainings * _EXPORTS * size * stored
        checkpoints = 0 if frozen else train.jobs * (train.run.keep_checkpoints + 1) * size * _STATE
        needed = size * stored if frozen else (target.train_bytes or 0 if target else 0)
        return cls(needed, {name: found.run_bytes or 0 for name, found in models.items()}, exports + checkpoints)

    def findings(self, config: FusionConfig, memory: Memory) -> Iterator[Finding]:
        yield self._training(config, memory)
        if self.run and (config.executor.kind == "inline" or config.executor.address is None):
            yield self._precompute(config, memory)  # else the sources run on the cluster's machines

    def _training(self, config: FusionConfig, memory: Memory) -> Finding:
        run = config.train.run
        if memory.gpus and run.device != "cpu":
            parts = (run.devices or len(memory.gpus)) if run.shards == "fsdp" else 1
            remedy = "set train.run.shards to fsdp, train adapters (train.optimizer.lora), or take larger GPUs"
            return _fits("training", self.train // parts, min(memory.gpus), "of each GPU", remedy)
        remedy = "lower train.jobs, train adapters (train.optimizer.lora), or take a smaller target"
        return _fits("training", self.train * config.train.jobs, memory.ram, "of memory", remedy)

    def _precompute(self, config: FusionConfig, memory: Memory) -> Finding:
        largest = max(self.run, key=lambda name: self.run[name])
        if memory.gpus and config.precompute.device != "cpu":
            gpus = max(1, int(config.precompute.num_gpus))
            remedy = "raise precompute.num_gpus, or quantise the source (quantization: 8bit)"
            of_what = f"of a GPU for '{largest}'"
            return _fits("precompute", self.run[largest] // gpus, min(memory.gpus), of_what, remedy)
        workers = 1 if config.executor.kind == "inline" else config.precompute.workers
        remedy = "lower precompute.workers, or take a smaller source"
        of_what = f"of memory for '{largest}', {workers} at once"
        return _fits("precompute", self.run[largest] * workers, memory.ram, of_what, remedy)


def _fits(subject: str, needed: int, there: int, of_what: str, remedy: str) -> Finding:
    """Weights and optimizer beside what there is; from four fifths on, activations may not fit."""
    said = f"weights and what goes with them take {bytes_text(needed)} {of_what}, there are {bytes_text(there)}"
    if needed > there:
        return Finding("problem", subject, said, remedy)
    return Finding("warning", subject, said, remedy) if needed > 0.8 * there else Finding("ok", subject, said)
