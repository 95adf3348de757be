"""Measures a sample of the corpus on every stage, within a time, and scales what it took to the whole corpus.

The sample goes through the real stages, one worker each, in a temporary folder. Every source gets an equal share of
the time and reads as much of the sample as it can; one that does not fit this machine, or would take too long, is
scaled by its size from one that was measured.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fusionx.contract.errors import DataError
from fusionx.contract.files.storage import join
from fusionx.contract.shards.manifest import Manifest, build_manifest, read_manifest, write_manifest
from fusionx.contract.shards.parts import PartEntry, read_part
from fusionx.contract.stage import Stage, Unit
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.execution.executor import InlineExecutor
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.pipeline import Pipeline
from fusionx.pipelines.planning.plan import Plan, StagePlan, say
from fusionx.pipelines.planning.sample import SampledSplit, sample_config, take_sample
from fusionx.pipelines.planning.trainings import evaluation_plan, training_plans
from fusionx.pipelines.preflight.doctor import Need, described_models
from fusionx.pipelines.preflight.machine import disk_finding, memory_here
from fusionx.precompute.config import ModelConfig

if TYPE_CHECKING:
    from fusionx.pipelines.model_description import ModelDescription

_FORWARD, _TRAIN = 0.5, 0.3
"""Shares of the time: for all sources, and for all trainings."""


def make_plan(config: FusionConfig, documents: int, seconds: float) -> Plan:
    """Measures at most `documents` documents of the corpus, for about `seconds` after models are loaded.

    Raises:
        FusionXError: whatever would stop the run itself: no such corpus or model, k too large, a short context.
    """
    block = config.chunk.block_size
    sample = take_sample(config.corpus, documents, longest=max(4000, 8 * block))
    on_gpu = device_of(config) != "cpu"
    part_bytes = config.chunk.part_bytes if on_gpu else max(2 * config.precompute.batch_tokens, 4 * block)
    models, memory = described_models(config), memory_here()
    need = Need.of(config, models)
    findings = [*need.findings(config, memory)] if config.target.id in models else []
    with TemporaryDirectory(prefix="fusionx-plan-") as folder:
        pipeline = Pipeline(sample_config(config, sample, folder, part_bytes), Layout(folder), InlineExecutor())
        pipeline.check_models()
        measure = _Measure(pipeline, sample, models)
        room = max(memory.gpus) if on_gpu and memory.gpus else memory.ram
        stages = [
            measure.chunk(),
            *measure.precompute(_FORWARD * seconds, lambda name: need.run.get(name, 0) <= room),
            *measure.align(),
        ]
        trains = all(finding.level != "problem" for finding in findings if finding.subject == "training")
        stages += training_plans(pipeline, stages, need, _TRAIN * seconds if trains else None, measure.aligned)
    stages.append(evaluation_plan(config, stages))
    findings.append(disk_finding(config.output, round(sum(stage.bytes for stage in stages))))
    return Plan(
        name=config.name,
        documents=round(sum(split.documents * split.scale for split in sample.values())),
        text_bytes=round(sum(split.bytes * split.scale for split in sample.values())),
        exact=all(split.exact for split in sample.values()),
        sample_documents=sum(split.documents for split in sample.values()),
        sample_bytes=sum(split.bytes for split in sample.values()),
        device=device_of(config),
        stages=stages,
        findings=findings,
    )


def device_of(config: FusionConfig) -> str:
    """On which the sources run here: `cpu`, `cuda`."""
    from fusionx.precompute.logits.source_model import choose_device

    return choose_device(config.precompute.device).type


def workers_of(config: FusionConfig, configured: int) -> int:
    """Of a data stage: those that are configured, or the one of the executor `inline`."""
    return 1 if config.executor.kind == "inline" else configured


@dataclass
class _Part:
    """One part of the sample's chunks."""

    split: str
    text_bytes: int
    texts: list[str]


class _Measure:
    """The stages over the sample, one after the other. `aligned`: the candidates of whom every method has shards."""

    def __init__(
        self, pipeline: Pipeline, sample: dict[str, SampledSplit], models: dict[str, ModelDescription]
    ) -> None:
        self.pipeline, self.sample, self.models = pipeline, sample, models
        self.parts: list[_Part] = []
        self.entries: dict[str, list[PartEntry]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.aligned: frozenset[str] = frozenset()

    def chunk(self) -> StagePlan:
        stage = self.pipeline.chunk_stage()
        units, entries, seconds = self._run(stage)
        manifest = _marked(stage, units, entries)
        for entry in manifest.parts:
            texts = read_part(join(stage.output, entry.name), "chunks", ["text"])[0].column("text").to_pylist()
            size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
            self.parts.append(_Part(entry.split, size, texts))
        found = self._scaled(stage, entries, seconds)
        self._deal(manifest)
        return found

    def _deal(self, manifest: Manifest) -> None:
        """Puts one part of every split first, so that whatever is measured has all of them."""
        first = {part.split: at for at, part in reversed([*enumerate(manifest.parts)])}
        order = sorted(range(len(manifest.parts)), key=lambda at: (first[manifest.parts[at].split] != at, at))
        self.parts = [self.parts[at] for at in order]
        _keep(self.pipeline.layout.chunks, manifest, [manifest.parts[at] for at in order])

    def precompute(self, seconds: float, fits: Callable[[str], bool]) -> list[StagePlan]:
        """Every source: the small ones first, which tell whether the large ones can be measured, too."""
        models = self.pipeline.config.models
        known = {model.id: getattr(self.models.get(model.id), "parameters", None) or 1 for model in models}
        spent, found = 0.0, dict[str, StagePlan]()
        for number, model in enumerate(sorted(models, key=lambda model: known[model.id])):
            share = max(0.0, seconds - spent) / (len(models) - number)  # what one leaves, the next ones have
            stage = self.pipeline.logits_stage(model)
            nearest = max(found, key=lambda name: known[name], default=None)
            per_unit = 0.0 if nearest is None else known[model.id] / known[nearest] * max(self.seconds[nearest])
            if not fits(model.id) or per_unit > share:
                continue
            units, entries, taken = self._run(stage, share, least=len({unit.split for unit in stage.units()}))
            _marked(stage, units, entries)
            self.entries[model.id], self.seconds[model.id] = entries, taken
            spent += sum(taken)
            found[model.id] = self._scaled(stage, entries, taken)
        if not found:
            raise DataError(
                "No model of this run could be measured on this machine.",
                found=", ".join(f"{name} of {size:,} parameters" for name, size in known.items()),
                remedy="plan on a machine like those that will do the work, or raise --seconds",
            )
        return [found.get(model.id) or self._by_size(model, found, known) for model in models]

    def _by_size(self, model: ModelConfig, found: dict[str, StagePlan], known: dict[str, int]) -> StagePlan:
        """A source that was not run: its tokens are counted, its time goes with its size."""
        say(f"precompute/{model.id}: only its tokens are counted")
        like = max(found, key=lambda name: known[name])
        encoder, needs = load_encoder(model.path, model.revision), self.pipeline.logits_stage(model).resources
        stage = self.pipeline.logits_stage(model)
        units = [*stage.units()]
        tokens = {unit.index: sum(encoder.count(self.parts[unit.index].texts)) for unit in units}
        of_split: defaultdict[str, float] = defaultdict(float)
        for unit in units:
            of_split[unit.split] += self._factor(unit.split, units) * tokens[unit.index]
        total = sum(of_split.values())
        rate = found[like].tokens_per_s * known[like] / known[model.id]
        workers = workers_of(self.pipeline.config, needs.workers)
        hours = total / rate / 3600 / workers
        return StagePlan(
            stage=stage.name,
            chunks=found[like].chunks,
            tokens=round(total),
            bytes=round(found[like].bytes / found[like].tokens * total),
            tokens_per_s=rate,
            mb_per_s=found[like].mb_per_s * rate / found[like].tokens_per_s * found[like].tokens / max(1, total),
            workers=workers,
            hours=hours,
            cpu_hours=hours * workers * needs.num_cpus,
            gpu_hours=hours * workers * needs.num_gpus,
            chunks_of=found[like].chunks_of,
            tokens_of={split: round(count) for split, count in of_split.items()},
            memory=self._memory(model.id, workers),
            scaled_from=f"not run here (too large, or too slow for the time); by size from {like}",
        )

    def align(self) -> list[StagePlan]:
        """The target's tokens over the whole sample, then every method over what all measured sources have read."""
        pipeline, config = self.pipeline, self.pipeline.config
        stage = pipeline.tokens_stage()
        units, entries, seconds = self._run(stage)
        rows = [self._scaled(stage, entries, seconds)]
        read = min(map(len, self.entries.values()))
        if config.target.id not in self.entries:
            return rows
        self._cut(read)
        stage = pipeline.tokens_stage()  # over what is left
        units = [*stage.units()]
        _marked(stage, units, entries[: len(units)])
        for method in config.align.methods:
            measured: dict[str, StagePlan] = {}
            for model in config.models:
                if model.id in self.entries:
                    aligned = pipeline.aligned_stage(method, model)
                    units, entries, seconds = self._run(aligned)
                    _marked(aligned, units, entries)
                    measured[model.id] = self._scaled(aligned, entries, seconds)
            rows += [measured.get(model.id) or _like(measured, method, model.id) for model in config.models]
        self.aligned = frozenset(self.entries)
        return rows

    def _cut(self, read: int) -> None:
        """Leaves of the sample what every measured source has read."""
        layout = self.pipeline.layout
        chunks = read_manifest(layout.chunks, "chunks", "chunk")
        for name in self.entries:
            logits = read_manifest(layout.logits(name), "logits", "precompute")
            _keep(layout.logits(name), logits, logits.parts[:read])
        some = next(iter(self.entries))
        last = [*self.pipeline.logits_stage(self.pipeline.model(some)).units()][read - 1].index
        _keep(layout.chunks, chunks, chunks.parts[: last + 1])

    def _run(
        self, stage: Stage, seconds: float = float("inf"), least: int = 1
    ) -> tuple[list[Unit], list[PartEntry], list[float]]:
        """The units that could be made in that time, at least `least` of them, and what each took."""
        units = [*stage.units()]
        if not units:
            raise DataError("The sample holds nothing for a stage.", field="stage", found=stage.name)
        say(f"{stage.name}: {len(units)} parts of the sample" + (f", {seconds:.0f} s" if seconds < 1e9 else ""))
        worker = stage.worker()
        started = time.monotonic()
        entries = [worker(units[0])]
        taken = [time.monotonic() - started]
        if taken[0] < seconds / 4:  # it was the warm-up: compiled kernels, caches, a GPU's first calls
            seconds, entries, taken = seconds - taken[0], [], []
        for unit in units[len(entries) :]:
            if len(entries) >= least and sum(taken) > seconds:
                break
            started = time.monotonic()
            entries.append(worker(unit))
            taken.append(time.monotonic() - started)
        return units[: len(entries)], entries, taken

    def _factor(self, split: str, units: Sequence[Unit]) -> float:
        """How much text of this split the corpus has, over that of these units."""
        whole = sum(part.text_bytes for part in self.parts if part.split == split)
        done = sum(self.parts[unit.index].text_bytes for unit in units if unit.split == split)
        return self.sample[split].scale * whole / max(1, done)

    def _scaled(self, stage: Stage, entries: Sequence[PartEntry], seconds: Sequence[float]) -> StagePlan:
        units = [*stage.units()][: len(entries)]
        factors = {unit.split: self._factor(unit.split, units) for unit in units}
        totals, chunks_of, tokens_of = (defaultdict[str, float](float) for _ in range(3))
        for unit, entry, taken in zip(units, entries, seconds, strict=True):
            factor = factors[unit.split]
            text = self.parts[unit.index].text_bytes
            for name, value in (("bytes", entry.bytes), ("seconds", taken), ("text", text)):
                totals[name] += factor * value
            chunks_of[unit.split] += factor * entry.rows
            tokens_of[unit.split] += factor * entry.tokens
        tokens = sum(tokens_of.values())
        needs = stage.resources
        workers = workers_of(self.pipeline.config, needs.workers)
        hours = totals["seconds"] / 3600 / workers
        return StagePlan(
            stage=stage.name,
            chunks=round(sum(chunks_of.values())),
            tokens=round(tokens),
            bytes=round(totals["bytes"]),
            tokens_per_s=tokens / totals["seconds"],
            mb_per_s=totals["text"] / 1e6 / totals["seconds"],
            workers=workers,
            hours=hours,
            cpu_hours=hours * workers * needs.num_cpus,
            gpu_hours=hours * workers * needs.num_gpus,
            chunks_of={split: round(count) for split, count in chunks_of.items()},
            tokens_of={split: round(count) for split, count in tokens_of.items()},
            memory=self._memory(stage.name.removeprefix("precompute/"), workers),  # 0 for other stages
        )

    def _memory(self, name: str, workers: int) -> int:
        found = self.models.get(name)
        return 0 if found is None else workers * (found.run_bytes or 0)


def _like(measured: dict[str, StagePlan], method: str, name: str) -> StagePlan:
    like = max(measured, key=lambda other: measured[other].hours)
    return replace(
        measured[like], stage=f"align/{method}/{name}", scaled_from=f"its source was not run here; taken as {like}'s"
    )


def _keep(folder: str, manifest: Manifest, parts: list[PartEntry]) -> None:
    write_manifest(folder, build_manifest(manifest.kind, manifest.config, manifest.identity, parts))


def _marked(stage: Stage, units: Sequence[Unit], entries: list[PartEntry]) -> Manifest:
    provenance = stage.provenance(units[0])
    manifest = build_manifest(stage.kind, provenance.config, provenance.identity, entries)
    write_manifest(stage.output, manifest)
    return manifest
