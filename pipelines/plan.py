"""What a run will take, from a small measured sample: chunks, tokens, bytes and hours per stage, before anything runs.

The sample goes through the real stages, one worker each, in a temporary folder; what it took is scaled, split by
split, by the text of the corpus over the text of the sample.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.shards.manifest import build_manifest, write_manifest
from fusionx.contract.shards.parts import PartEntry
from fusionx.contract.stage import Stage
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.execution.executor import InlineExecutor
from fusionx.pipelines.layout import Layout
from fusionx.pipelines.pipeline import Pipeline
from fusionx.precompute.config import SPLITS, CorpusConfig, Split
from fusionx.precompute.corpus.documents import Document, SplitReader, split_of_text

_READ_BYTES = 64_000_000
"""Text read of each split; a corpus with more is judged by the share of its files that this was."""
_SEED = 0


@dataclass(frozen=True)
class StagePlan:
    """One stage over the whole corpus.

    `tokens_per_s` is that of one worker on this machine (0 for `chunk`, which has no tokenizer of its own; see
    `mb_per_s`, millions of text bytes per second). `hours` is the work divided among the configured workers;
    `cpu_hours` and `gpu_hours` are these hours times what all workers hold. `train_chunks` and `train_tokens` are those
    of the training split.
    """

    stage: str
    chunks: int
    tokens: int
    bytes: int
    tokens_per_s: float
    mb_per_s: float
    workers: int
    hours: float
    cpu_hours: float
    gpu_hours: float
    train_chunks: int
    train_tokens: int


@dataclass(frozen=True)
class Plan:
    """All stages before the training, and what they were judged by. `exact`: the whole corpus was read."""

    name: str
    documents: int
    text_bytes: int
    exact: bool
    sample_documents: int
    sample_bytes: int
    device: str
    stages: list[StagePlan]

    def total(self) -> dict[str, float]:
        """Sums over the stages, which run one after the other."""
        return {
            name: sum(getattr(stage, name) for stage in self.stages)
            for name in ("bytes", "hours", "cpu_hours", "gpu_hours")
        }

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "total": self.total()}, indent=1)

    def table(self) -> str:
        about = "" if self.exact else "about "
        lines = [
            f"{self.name}: {about}{self.documents:,} documents, {about}{self.text_bytes / 1e6:,.1f} MB of text",
            f"measured here, one worker, device {self.device}, on {self.sample_documents:,} documents "
            f"({self.sample_bytes / 1e6:,.2f} MB)",
            "",
            _row("stage", "chunks", "tokens", "tokens/s", "text MB/s", "output", "workers", "time", "CPU h", "GPU h"),
        ]
        for stage in self.stages:
            lines.append(
                _row(
                    stage.stage,
                    f"{stage.chunks:,}",
                    f"{stage.tokens:,}" if stage.tokens else "",
                    f"{stage.tokens_per_s:,.0f}" if stage.tokens else "",
                    f"{stage.mb_per_s:,.3g}",
                    _bytes(stage.bytes),
                    str(stage.workers),
                    _time(stage.hours),
                    f"{stage.cpu_hours:,.3g}",
                    f"{stage.gpu_hours:,.3g}",
                )
            )
        total = self.total()
        held = (f"{total[name]:,.3g}" for name in ("cpu_hours", "gpu_hours"))
        lines.append(_row("total", "", "", "", "", _bytes(total["bytes"]), "", _time(total["hours"]), *held))
        return "\n".join(lines)


def _row(stage: str, *cells: str) -> str:
    widths = (14, 16, 11, 10, 9, 8, 9, 9, 9)
    return f"{stage:<30}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _bytes(count: float) -> str:
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:,.3g} {unit}"
    return f"{count / 1000:,.3g} TB"


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.3g} s"
    return f"{hours * 60:.3g} min" if hours < 1 else f"{hours:,.3g} h"


def make_plan(config: FusionConfig, documents: int) -> Plan:
    """Measures about `documents` documents of the corpus on every stage before the training.

    Raises:
        FusionXError: whatever would stop the run itself: no such corpus or model, k too large, a short context.
    """
    sample = _take_sample(config.corpus, documents)
    with TemporaryDirectory(prefix="fusionx-plan-") as folder:
        pipeline = Pipeline(_sample_config(config, sample, folder), Layout(folder), InlineExecutor())
        pipeline.check_models()
        stages = [_measured(stage, sample) for stage in _stages(pipeline)]
    return Plan(
        name=config.name,
        documents=round(sum(split.documents * split.scale for split in sample.values())),
        text_bytes=round(sum(split.bytes * split.scale for split in sample.values())),
        exact=all(split.exact for split in sample.values()),
        sample_documents=sum(split.documents for split in sample.values()),
        sample_bytes=sum(split.bytes for split in sample.values()),
        device=_device(config),
        stages=stages,
    )


def _stages(pipeline: Pipeline) -> Iterator[Stage]:
    yield pipeline.chunk_stage()
    for model in pipeline.config.models:
        yield pipeline.logits_stage(model)
    yield pipeline.tokens_stage()
    for method in pipeline.config.align.methods:
        for model in pipeline.config.models:
            yield pipeline.aligned_stage(method, model)


def _measured(stage: Stage, sample: dict[str, _Split]) -> StagePlan:
    """Makes the sample's parts with one worker and scales what they took to the corpus."""
    print(f"[plan] {stage.name}", file=sys.stderr, flush=True)
    units = list(stage.units())
    if not units:
        raise DataError("The sample holds nothing for a stage.", field="stage", found=stage.name)
    worker = stage.worker()
    worker(units[0])  # once for warm-up: compiled kernels, caches, a GPU's first calls
    entries: list[PartEntry] = []
    totals: defaultdict[str, float] = defaultdict(float)
    for unit in units:
        started = time.monotonic()
        entry = worker(unit)
        seconds = time.monotonic() - started
        entries.append(entry)
        scale = sample[unit.split].scale
        for name, value in (("chunks", entry.rows), ("tokens", entry.tokens), ("bytes", entry.bytes)):
            totals[name] += scale * value
        totals["seconds"] += scale * seconds
        if unit.split == "train":
            totals["train_chunks"] += scale * entry.rows
            totals["train_tokens"] += scale * entry.tokens
    provenance = stage.provenance(units[0])
    write_manifest(stage.output, build_manifest(stage.kind, provenance.config, provenance.identity, entries))
    text = sum(sample[split].scale * sample[split].bytes for split in {unit.split for unit in units})
    needs = stage.resources
    hours = totals["seconds"] / 3600 / needs.workers
    return StagePlan(
        stage=stage.name,
        chunks=round(totals["chunks"]),
        tokens=round(totals["tokens"]),
        bytes=round(totals["bytes"]),
        tokens_per_s=totals["tokens"] / totals["seconds"],
        mb_per_s=text / 1e6 / totals["seconds"],
        workers=needs.workers,
        hours=hours,
        cpu_hours=hours * needs.workers * needs.num_cpus,
        gpu_hours=hours * needs.workers * needs.num_gpus,
        train_chunks=round(totals["train_chunks"]),
        train_tokens=round(totals["train_tokens"]),
    )


@dataclass(frozen=True)
class _Split:
    """The sampled documents of one split; the corpus holds `scale` times as much text of it."""

    sampled: list[Document]
    scale: float
    exact: bool

    @property
    def documents(self) -> int:
        return len(self.sampled)

    @property
    def bytes(self) -> int:
        return sum(map(_size, self.sampled))


def _take_sample(config: CorpusConfig, documents: int) -> dict[str, _Split]:
    """About `documents` documents, dealt to the splits by their text; at least one of every split that has any."""
    read: defaultdict[str, list[Document]] = defaultdict(list)
    corpus_bytes: defaultdict[str, float] = defaultdict(float)
    exact = True
    for split in config.splits:
        rows, share = _read_some(config, split)
        exact = exact and share == 1.0
        for document in rows:
            read[document.split].append(document)
            corpus_bytes[document.split] += _size(document) / share
    if not read:
        raise DataError("The corpus is empty.", file=config.path or config.dataset, field="corpus")
    total = sum(map(len, read.values()))
    rng = random.Random(_SEED)
    sample = {}
    for name, rows in read.items():
        chosen = rng.sample(rows, min(len(rows), math.ceil(documents * len(rows) / total)))
        sample[name] = _Split(chosen, corpus_bytes[name] / max(1, sum(map(_size, chosen))), exact)
    return sample


def _read_some(config: CorpusConfig, split: Split) -> tuple[list[Document], float]:
    """The first documents of one split of the files, and which share of it they are."""
    reader = SplitReader(config, split)
    rows: list[Document] = []
    size = 0
    for text, domain in reader:
        rows.append(Document(len(rows), split_of_text(text, config, split), domain, text))
        size += _size(rows[-1])
        if size >= _READ_BYTES:
            break
    else:
        return rows, 1.0
    if reader.share is None:
        raise ConfigError(
            "Nobody can tell how large this corpus is.",
            field="corpus",
            found=f"{config.dataset} [{split}], which states no number of documents",
            remedy="set corpus.limit to the documents that you want of this split",
        )
    return rows, reader.share


def _size(document: Document) -> int:
    return len(document.text.encode("utf-8", "surrogatepass"))


def _sample_config(config: FusionConfig, sample: dict[str, _Split], folder: str) -> FusionConfig:
    """The same run over the sample, which is written to `folder` as JSON lines."""
    corpus = Path(folder) / "corpus"
    corpus.mkdir()
    for name, split in sample.items():
        lines = (json.dumps({"text": document.text, "domain": document.domain}) + "\n" for document in split.sampled)
        (corpus / f"{name}.jsonl").write_text("".join(lines))
    here = CorpusConfig(path=str(corpus), domain="domain", splits=[name for name in SPLITS if name in sample])
    return config.model_copy(update={"corpus": here, "output": folder})


def _device(config: FusionConfig) -> str:
    from fusionx.precompute.logits.source_model import choose_device

    return str(choose_device(config.precompute.device))
