"""Evaluates every model of a run on the same held-out text, tasks and benchmarks: target, sources, all methods."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionx.contract.errors import DataError
from fusionx.contract.files.storage import join
from fusionx.contract.models.place import loadable
from fusionx.contract.progress import clock
from fusionx.contract.shards.manifest import read_manifest
from fusionx.contract.shards.parts import read_part
from fusionx.eval.benchmark_runner import load_benchmark_tasks, run_benchmarks
from fusionx.eval.config import EvalConfig
from fusionx.eval.evaluate import evaluate_model
from fusionx.eval.report.inputs import STEPS
from fusionx.eval.results.benchmark_scores import BenchmarkScores
from fusionx.eval.results.evaluation import Evaluation
from fusionx.eval.tasks.exact_match import load_tasks
from fusionx.eval.text.perplexity import Chunk
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.training.training_jobs import finished_jobs
from fusionx.precompute.config import ModelConfig
from fusionx.train.config import TrainJob

_MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class EvaluationJob:
    """A model, by its folder or as the config names it, and where its evaluation is kept."""

    source: ModelConfig | str
    output: str

    @property
    def model(self) -> str:
        """Its folder; a hub model is fetched first, a GGUF file read."""
        return loadable(self.source) if isinstance(self.source, str) else local_folder(self.source)


def evaluate_all(config: FusionConfig, layout: Layout) -> int:
    """Evaluates whatever has no valid evaluation yet; returns how many evaluations and benchmark tasks that were.

    Raises:
        ConfigError: a task is missing, or the benchmarks cannot be run.
        DataError: a training has no result, or the held-out split or a benchmark's task is empty.
    """
    load_tasks(config.eval)  # what the config asks for comes before what is not there yet
    tasks = load_benchmark_tasks(config.eval) if config.eval.benchmarks else []
    chunks = held_out_chunks(layout, config.eval.split)
    models = list(all_models(config, layout, finished_jobs(config, layout)))
    made = evaluate_each(models, chunks, config.eval)
    if tasks:
        made += run_benchmarks([item.model for item in models], config.eval, layout.benchmarks, tasks=tasks)
    return made


def evaluate_each(models: Sequence[EvaluationJob], chunks: Sequence[Chunk], config: EvalConfig) -> int:
    """How many had no valid evaluation; says after each of these how far it is."""
    started, made = time.monotonic(), 0
    for number, item in enumerate(models, start=1):
        is_new = evaluate(item, chunks, config)
        made += is_new
        if is_new:
            left = (time.monotonic() - started) / made * (len(models) - number)
            print(f"[eval] {number} of {len(models)} models, {clock(left)} left", file=sys.stderr, flush=True)
    return made


def evaluate(item: EvaluationJob, chunks: Sequence[Chunk], config: EvalConfig) -> bool:
    """Evaluates a model unless it has a valid evaluation; returns whether it had none."""
    output = Path(item.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    before = output.stat().st_mtime_ns if output.exists() else None
    evaluate_model(item.model, chunks, config, item.output)
    return output.stat().st_mtime_ns != before


def load_evaluation(config: FusionConfig, layout: Layout, path: str) -> Evaluation:
    """A model's evaluation; its scores of the configured benchmarks stand among its tasks.

    Raises:
        DataError: the file is missing or damaged, or the benchmarks were not run on that model.
    """
    evaluation = Evaluation.load(path)
    if not config.eval.benchmarks:
        return evaluation
    return BenchmarkScores.load(layout.benchmarks).joined(evaluation, config.eval.benchmarks)


def held_out_chunks(layout: Layout, split: str) -> list[Chunk]:
    manifest = read_manifest(layout.chunks, "chunks", "chunk")
    rows: list[Chunk] = []
    for part in manifest.parts_of(split):
        columns = ["doc_id", "chunk", "domain", "text"]
        table, _ = read_part(join(layout.chunks, part.name), "chunks", columns, part.sha256)
        rows.extend({**row, "format": manifest.config.get("format", "text")} for row in table.to_pylist())
    if not rows:
        raise DataError(
            "There is no held-out text.",
            file=layout.chunks,
            field="eval.split",
            found=f"no chunks of '{split}'",
            remedy="give the corpus that split, or set corpus.holdout",
        )
    return rows


def all_models(config: FusionConfig, layout: Layout, jobs: Sequence[TrainJob]) -> Iterator[EvaluationJob]:
    """The target, the sources where they are evaluated, and what every one of `jobs` exports; looks at no file."""
    for model in config.models if config.eval.sources else [config.target]:
        yield EvaluationJob(model, layout.evaluation("models", model.id))
    for job in jobs:
        for step in STEPS:
            yield EvaluationJob(join(job.output, step), evaluation_of(layout, job, step))


def best_models(config: FusionConfig, layout: Layout, split: str, jobs: Sequence[TrainJob]) -> Iterator[EvaluationJob]:
    """On any split: the original target, and what every one of `jobs` has at its best step; looks at no file."""
    yield EvaluationJob(config.target, evaluation_on(config, layout, split, "models", config.target.id))
    for job in jobs:
        output = evaluation_on(config, layout, split, job.method_name, f"seed-{job.seed}", "best")
        yield EvaluationJob(join(job.output, "best"), output)


def evaluation_on(config: FusionConfig, layout: Layout, split: str, *model: str) -> str:
    """Where a model's evaluation on a split is kept: those on another split than `eval.split` in a folder of theirs."""
    return layout.evaluation(*(() if split == config.eval.split else (split,)), *model)


def settings_on(config: FusionConfig, split: str) -> EvalConfig:
    """On another split than `eval.split` only the text is scored."""
    if split == config.eval.split:
        return config.eval
    return config.eval.model_copy(update={"split": split, "tasks": [], "examples": 0})


def local_folder(model: ModelConfig) -> str:
    """The model's folder; a hub model is fetched into the hub's cache first (weights as safetensors only)."""
    place = loadable(model.path, model.revision)
    if Path(place).is_dir():
        return place
    from huggingface_hub import snapshot_download

    return snapshot_download(place, revision=model.revision, allow_patterns=_MODEL_FILES)


def evaluation_of(layout: Layout, job: TrainJob, step: str) -> str:
    return layout.evaluation(job.method_name, f"seed-{job.seed}", step)
