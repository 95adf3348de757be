"""The stages in order, each as a function of the run's config: chunk, precompute, align, train, eval."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fusionx.align.aligned_stage import AlignedStage
from fusionx.align.config import AlignMethod
from fusionx.align.tokens_stage import TokensStage
from fusionx.contract.errors import ConfigError
from fusionx.contract.files.storage import join, plain, write_bytes
from fusionx.contract.shards.manifest import has_manifest, read_manifest
from fusionx.contract.stage import Stage
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.execution.executor import Executor, make_executor
from fusionx.pipelines.execution.stage_runner import run_stages
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.timings import note_timing
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.chunks.corpus_findings import corpus_findings
from fusionx.precompute.config import ModelConfig
from fusionx.precompute.corpus.files import check_corpus
from fusionx.precompute.logits.logits_stage import LogitsStage
from fusionx.train.distributed.ranks import is_main_process

STAGES = ("chunk", "precompute", "align", "train", "eval")


@dataclass
class Pipeline:
    """A run under way: its config, its folders, its executor."""

    config: FusionConfig
    layout: Layout
    executor: Executor
    overwrite: bool = False

    def chunk(self) -> None:
        check_corpus(self.config.corpus)
        self.check_models()
        self._run("chunk", [self.chunk_stage(self._newcomers())])
        for line in corpus_findings(read_manifest(self.layout.chunks, "chunks", "chunk")):
            print(f"[chunk] {line}", file=sys.stderr, flush=True)

    def precompute(self, only: str | None = None) -> None:
        """Runs every candidate, or the one named `only`, over the chunks, in one pool of workers."""
        self.check_models()
        self._run("precompute", [self.logits_stage(model) for model in self._candidates(only)])

    def align(self, only: str | None = None) -> None:
        """Aligns every candidate's shards, or those of `only`, with the target, by every configured method."""
        sources = self._candidates(only)
        self._run("align", [self.tokens_stage()])
        stages = [self.aligned_stage(method, model) for method in self.config.align.methods for model in sources]
        for stage in stages:
            stage.check()
        self._run("align", stages)

    def model(self, name: str) -> ModelConfig:
        """The candidate of this name.

        Raises:
            ConfigError: there is none.
        """
        for model in self.config.models:
            if model.id == name:
                return model
        known = ", ".join(model.id for model in self.config.models)
        raise ConfigError("There is no such source.", field="--source", found=name, expected=known)

    def train(self, resume: Path | None = None) -> None:
        """`resume`: a checkpoint that its training goes on from; the others go on from their last."""
        from fusionx.pipelines.training.training_jobs import train_all

        self._timed("train", lambda: train_all(self.config, self.layout, self.overwrite, resume))

    def eval(self) -> None:
        from fusionx.pipelines.evaluation.ensembles import evaluate_rivals
        from fusionx.pipelines.evaluation.evaluate_models import evaluate_all
        from fusionx.pipelines.evaluation.reporting import report

        scorers = (evaluate_all, evaluate_rivals)
        self._timed("eval", lambda: sum(score(self.config, self.layout) for score in scorers))
        report(self.config, self.layout)

    def check_benchmarks(self) -> None:
        """Refuses, before hours go into the other stages, benchmarks that may not or cannot be run here."""
        from fusionx.eval.benchmark_runner import check_benchmarks

        check_benchmarks(self.config.eval)

    def check_models(self) -> None:
        """Refuses what cannot work before any weights are loaded."""
        for model in self.config.models:
            self.logits_stage(model).check(self.config.chunk.block_size)
        if self.config.eval.merges:
            from fusionx.pipelines.evaluation.merging import check_merges

            check_merges(self.config)

    def _newcomers(self) -> tuple[str, ...]:
        """Candidates that have not read all chunks yet, and may have joined after they were cut."""
        return tuple(model.id for model in self.config.models if not has_manifest(self.layout.logits(model.id)))

    def chunk_stage(self, newcomers: tuple[str, ...] = ()) -> ChunkStage:
        config = self.config
        return ChunkStage(config.corpus, config.chunk, config.models, self.layout.chunks, newcomers)

    def logits_stage(self, model: ModelConfig) -> LogitsStage:
        return LogitsStage(model, self.config.precompute, self.layout.chunks, self.layout.logits(model.id))

    def tokens_stage(self) -> TokensStage:
        target = self.config.target
        return TokensStage(
            target.id,
            target.path,
            target.revision,
            list(dict.fromkeys([*self.config.precompute.splits, "validation"])),
            self.layout.chunks,
            self.layout.tokens(target.id),
            self.config.align.workers,
        )

    def aligned_stage(self, method: AlignMethod, model: ModelConfig) -> AlignedStage:
        target = self.config.target
        return AlignedStage(
            source=model.id,
            source_path=model.path,
            source_revision=model.revision,
            target=target.id,
            target_path=target.path,
            target_revision=target.revision,
            method=method,
            config=self.config.align,
            logits=self.layout.logits(model.id),
            target_logits=self.layout.logits(target.id),
            tokens=self.layout.tokens(target.id),
            output=self.layout.aligned(target.id, method, model.id),
        )

    def _candidates(self, only: str | None) -> list[ModelConfig]:
        return self.config.models if only is None else [self.model(only)]

    def _run(self, name: str, stages: Sequence[Stage]) -> None:
        """Runs stages in one pool, and notes what they took if any part was made."""
        started = time.monotonic()
        reports = run_stages(stages, self.executor, self.overwrite)
        made = sum(report.made for report in reports)
        if made:
            totals = {
                key: sum(report.manifest.totals[key] for report in reports) for key in ("rows", "tokens", "bytes")
            }
            numbers = {"seconds": time.monotonic() - started, "parts": made, **totals}
            note_timing(self.layout, name, ", ".join(stage.name for stage in stages), numbers)

    def _timed(self, name: str, work: Callable[[], int]) -> None:
        """Runs `work`, and notes its time if it says that anything was made (of several processes, the first does)."""
        started = time.monotonic()
        if work() and is_main_process():
            note_timing(self.layout, name, name, {"seconds": time.monotonic() - started})


@contextmanager
def open_pipeline(config: FusionConfig, overwrite: bool = False, read_only: bool = False) -> Iterator[Pipeline]:
    """A pipeline with its executor; keeps a copy of the resolved config beside the outputs, unless `read_only`."""
    layout = Layout(plain(config.output))
    if not read_only and is_main_process():
        content = {"digest": config.digest(), "config": config.model_dump(mode="json")}
        write_bytes(join(layout.root, "config.json"), (json.dumps(content, indent=1) + "\n").encode())
    executor = make_executor(config.executor)
    try:
        yield Pipeline(config, layout, executor, overwrite)
    finally:
        executor.close()
