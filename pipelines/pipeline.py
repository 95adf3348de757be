"""The stages in order, each as a function of the run's config: chunk, precompute, align, train, eval."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from fusionx.align.aligned_stage import AlignedStage
from fusionx.align.config import AlignMethod
from fusionx.align.tokens_stage import TokensStage
from fusionx.contract.config import load_config
from fusionx.contract.errors import ConfigError, DamageError
from fusionx.contract.files.lock import folder_lock
from fusionx.contract.files.sealed import read_sealed, write_sealed
from fusionx.contract.files.storage import exists, plain, remove_leftovers, write_bytes
from fusionx.contract.shards.manifest import has_manifest, read_manifest
from fusionx.contract.stage import Stage
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.execution.executor import Executor, make_executor
from fusionx.pipelines.execution.interruption import stopped_by_signals
from fusionx.pipelines.execution.local_copy import local_copy
from fusionx.pipelines.execution.stage_runner import run_stages
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.preflight.devices import missing_devices
from fusionx.pipelines.preflight.run_checks import held_out_errors, refuse, run_errors
from fusionx.pipelines.timings import timed
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.chunks.corpus_findings import corpus_findings
from fusionx.precompute.config import ModelConfig
from fusionx.precompute.corpus.files import check_corpus
from fusionx.precompute.generation.generate_stage import GenerateStage
from fusionx.precompute.logits.logits_stage import LogitsStage
from fusionx.train.distributed.ranks import is_main_process

if TYPE_CHECKING:
    from fusionx.pipelines.evaluation.run_result import RunResult
    from fusionx.pipelines.generated_corpus import GeneratedCorpus

STAGES = ("chunk", "precompute", "align", "train", "eval")


@dataclass
class Pipeline:
    """A run under way: its config, its folders, its executor. Each stage keeps what is done and valid.

    `arguments`: the config file and the overrides, as a command line takes them.
    """

    config: FusionConfig
    layout: Layout
    executor: Executor
    overwrite: bool = False
    arguments: str = "CONFIG.yaml"

    def run(self) -> RunResult:
        """All stages in order, after all that can be known of them at once."""
        self.check()
        self.chunk()
        refuse(held_out_errors(self.config, self.layout))
        self.precompute()
        self.align()
        self.train()
        return self.eval()

    def check(self) -> None:
        """Refuses, before anything is made, what can be known at once."""
        refuse(run_errors(self.config, self.layout, self.overwrite))
        self.check_benchmarks()

    def chunk(self) -> None:
        """Cuts the corpus so that every chunk fits every tokenizer."""
        check_corpus(self.config.corpus)
        self.check_models()
        self._run("chunk", [self.chunk_stage(self._newcomers())])
        for line in corpus_findings(read_manifest(self.layout.chunks, "chunks", "chunk")):
            print(f"[chunk] {line}", file=sys.stderr, flush=True)

    def precompute(self, only: str | None = None) -> None:
        """Runs every candidate, or the one named `only`, over the chunks, in one pool of workers."""
        refuse(missing_devices(self.config, "precompute"))
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

    def generate(self) -> GeneratedCorpus:
        """Has the sources write text in the domains that each knows best, and puts it beside the corpus's own.

        Raises:
            ConfigError: the corpus is of conversations, or a source cannot write.
            DataError: alignment, by which it is told who knows what, is not finished, or no source knows a domain best.
        """
        from fusionx.pipelines.generated_corpus import best_sources, write_corpus

        refuse(missing_devices(self.config, "precompute"))
        stages = [
            self.generate_stage(name, domains) for name, domains in best_sources(self.config, self.layout).items()
        ]
        for stage in stages:
            stage.check()
        self._run("generate", stages)
        return write_corpus(self.config, self.layout, stages)

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
        from fusionx.pipelines.evaluation.recommended_model import retract
        from fusionx.pipelines.training.training_jobs import refuse_launched, train_all

        refuse(missing_devices(self.config, "train"))
        refuse_launched(self.layout)
        withdraw = partial(retract, self.layout)  # before and not after: a kill between the two would leave the old one
        outputs = [self.layout.trainings, self.layout.timings]
        with local_copy(self.layout, self._read_by_trainings(), outputs) as here:
            self._timed("train", lambda: train_all(self.config, here, self.overwrite, resume, withdraw), here)

    def eval(self) -> RunResult:
        """Evaluates every model, writes the report, and puts the recommended model into `model/`."""
        from fusionx.pipelines.evaluation.ensembles import evaluate_rivals
        from fusionx.pipelines.evaluation.evaluate_models import evaluate_all
        from fusionx.pipelines.evaluation.recommended_model import evaluate_for_choice
        from fusionx.pipelines.evaluation.reporting import report
        from fusionx.pipelines.evaluation.run_result import RunResult

        scorers = (evaluate_all, evaluate_rivals, evaluate_for_choice)
        outputs = [self.layout.trainings, self.layout.evaluations, self.layout.timings]
        results = [self.layout.report, self.layout.model]
        copy = local_copy(self.layout, self._read_by_trainings(), outputs, results)
        with stopped_by_signals("finished evaluations"), copy as here, _sole_evaluator(here):
            self._timed("eval", lambda: sum(score(self.config, here) for score in scorers), here)
            said = report(self.config, here, self._commands())
        return RunResult(said, self.layout)

    def _read_by_trainings(self) -> list[str]:
        """The outputs of parts from which trainings and evaluations are made."""
        config, layout = self.config, self.layout
        target = config.target.id
        return [
            layout.chunks,
            layout.tokens(target),
            layout.logits(target),
            *(layout.aligned(target, method, model.id) for method in config.align.methods for model in config.models),
        ]

    def check_benchmarks(self) -> None:
        """Refuses, before hours go into the other stages, benchmarks that may not or cannot be run here."""
        if self.config.eval.benchmarks:
            from fusionx.eval.benchmark_runner import load_benchmark_tasks

            load_benchmark_tasks(self.config.eval)

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

    def generate_stage(self, source: str, domains: tuple[str, ...]) -> GenerateStage:
        config, output = self.config, self.layout.generated(source)
        return GenerateStage(
            self.model(source), domains, config.generate, config.precompute, self.layout.chunks, output
        )

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
            target.chat_template,
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
        with timed(self.layout, name, ", ".join(stage.name for stage in stages)) as numbers:
            reports = run_stages(stages, self.executor, self.overwrite)
            made = sum(report.made for report in reports)
            if made:
                totals = {
                    key: sum(report.manifest.totals[key] for report in reports) for key in ("rows", "tokens", "bytes")
                }
                numbers |= {"parts": made, **totals}
        self._note_command(name)

    def _timed(self, name: str, work: Callable[[], int], layout: Layout) -> None:
        """Runs `work`, and notes its time if it says that anything was made (of several processes, the first does)."""
        with timed(layout, name, name, notes=is_main_process()) as numbers:
            made = work()
            if made:
                numbers["made"] = made
        self._note_command(name)

    def _note_command(self, stage: str) -> None:
        """In the run's record: what its output agrees with, whether made now or before."""
        if is_main_process():
            _write_record(self.config, self.layout, _recorded_commands(self.layout) | {stage: self.arguments})

    def _commands(self) -> str:
        """What makes this run: one command where all stages were called with the same arguments, else one for each."""
        noted = _recorded_commands(self.layout)
        if {*noted.values()} <= {self.arguments}:
            return f"fusionx run {self.arguments}"
        return "\n".join(f"fusionx {stage} {noted[stage]}" for stage in STAGES if stage in noted)


def _sole_evaluator(layout: Layout) -> AbstractContextManager[None]:
    """Of two commands on one output the second is refused."""
    return folder_lock(Path(layout.evaluations), "command `fusionx eval`")


@contextmanager
def open_pipeline(
    config: FusionConfig | str | Path,
    overrides: Sequence[str] = (),
    *,
    overwrite: bool = False,
    read_only: bool = False,
) -> Iterator[Pipeline]:
    """A pipeline with its executor; keeps a copy of the resolved config beside the outputs, unless `read_only`.

    Args:
        config: a YAML file, or what was made of one. overrides: of the file, `a.b=value` each.
        overwrite: stale output is made again instead of refused.

    Raises:
        ConfigError: the config is wrong; all problems are told together.
    """
    arguments = shlex.join([str(config), *(word for one in overrides for word in ("--set", one))])
    if not isinstance(config, FusionConfig):
        config = load_config(FusionConfig, config, overrides)
        layout = Layout(plain(config.output))
    else:
        layout = Layout(plain(config.output))
        arguments = layout.config_file
    if not read_only and is_main_process():
        remove_leftovers(layout.root)  # of a call that was killed where this one may have nothing to write
        _write_record(config, layout, _recorded_commands(layout))
        if arguments == layout.config_file:
            content = config.model_dump(mode="json", exclude_unset=True)
            write_bytes(arguments, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    executor = make_executor(config.executor)
    try:
        yield Pipeline(config, layout, executor, overwrite, arguments)
    finally:
        executor.close()


def _write_record(config: FusionConfig, layout: Layout, commands: dict[str, str]) -> None:
    content = {"digest": config.digest(), "config": config.model_dump(mode="json"), "commands": commands}
    write_sealed(layout.record, content)


def _recorded_commands(layout: Layout) -> dict[str, str]:
    """Stage -> the arguments that it was last called with; nothing where there is no record, or a damaged one."""
    if not exists(layout.record):
        return {}
    try:
        commands: dict[str, str] = read_sealed(layout.record, "it is written anew").get("commands", {})
    except DamageError as error:
        print(f"What commands made this run is not known. {error}", file=sys.stderr, flush=True)
        return {}
    return commands
