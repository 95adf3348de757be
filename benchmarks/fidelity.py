"""What alignment costs between real models: bits per byte of the target's text under what each source is taken to say.

The models and the text are `pipelines.real.models` and `pipelines.real.text`, of which every domain's first documents
are read; distributions are computed once and kept under `data/`. Figures without a domain are means over
domains. `own` is the source on its own tokens, `aligned` the target's next tokens with nothing but the source (what it
does not say is shared evenly), `cost` the difference, `filled` as the trainer gets them. Beside the sources stand
mixtures of them that need no training (`eval.text.ensembles`): how good a teacher they are together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import get_args

import numpy as np
import pyarrow.parquet as pq

from fusionx.align.aligned_stage import AlignedStage, AlignWorker
from fusionx.align.config import AlignConfig, AlignMethod
from fusionx.align.fidelity import Calibration, Fidelity, calibration, fidelity, ratios, summary
from fusionx.align.tokens_stage import TokensStage
from fusionx.benchmarks.align import aligned_stage, make
from fusionx.benchmarks.measuring.figure import Figure
from fusionx.contract.shards.codec import Distributions
from fusionx.contract.shards.next_token import next_tokens
from fusionx.contract.stage import Stage
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.eval.text.ensembles import AlignedSplit, evaluate_ensembles
from fusionx.pipelines.config import ExecutorConfig
from fusionx.pipelines.execution.executor import make_executor
from fusionx.pipelines.execution.stage_runner import run_stages
from fusionx.pipelines.real.config import RealModelName
from fusionx.pipelines.real.models import model_folder
from fusionx.pipelines.real.text import real_text
from fusionx.precompute.chunks.chunk_stage import ChunkStage
from fusionx.precompute.config import ChunkConfig, CorpusConfig, ModelConfig, PrecomputeConfig
from fusionx.precompute.logits.logits_stage import LogitsStage

TARGET: RealModelName = "smollm2"
SOURCES: tuple[RealModelName, ...] = ("smollm2", "qwen", "gemma")
KEPT = Path("data/benchmarks/real")
DOCUMENTS, BLOCK, RANKS = 4, 1024, (32, 10)


def figures() -> Iterator[Figure]:
    """Of every method, rank and source, over all domains and in each."""
    models = {name: ModelConfig(id=name, path=str(model_folder(name)), dtype="float32") for name in SOURCES}
    corpus = CorpusConfig(path=str(_first_documents(real_text())), domain="domain", splits=["validation"])
    config = PrecomputeConfig(k=max(RANKS), splits=["validation"], threads=2)
    chunks, tokens = f"{KEPT}/chunks", f"{KEPT}/tokens"
    _make(ChunkStage(corpus, ChunkConfig(block_size=BLOCK), list(models.values()), chunks))
    _make(TokensStage(TARGET, models[TARGET].path, None, ["validation"], chunks, tokens))
    logits = {name: f"{KEPT}/logits/{name}" for name in SOURCES}
    for name in SOURCES:
        _make(LogitsStage(models[name], config, chunks, logits[name]))
    for method in get_args(AlignMethod):
        for source in SOURCES:
            folders = (logits[source], logits[TARGET], tokens)
            stage = aligned_stage(models[source], models[TARGET], method, *folders)
            worker = stage.worker()
            assert isinstance(worker, AlignWorker)
            for k in RANKS:
                yield from _case(f"{method} k{k} {source}", stage, worker, k)
    yield from _mixtures(models, logits, tokens)


def _mixtures(
    models: dict[RealModelName, ModelConfig], logits: dict[RealModelName, str], tokens: str
) -> Iterator[Figure]:
    """How good a teacher the sources are together: mixtures that are not trained, as the trainer gets the sources."""
    aligned = {}
    for source in SOURCES:
        stage = aligned_stage(models[source], models[TARGET], "walk", logits[source], logits[TARGET], tokens)
        make(stage)
        aligned[str(source)] = stage.output
    vocab_size = load_encoder(models[TARGET].path, None).vocab_size
    scores = evaluate_ensembles(AlignedSplit("validation", tokens, aligned, vocab_size))
    for name, found in scores["ensembles"].items():
        case = f"walk k{max(RANKS)} mixture {name}"
        bits = {domain: sums["bits_per_byte"] for domain, sums in found["domains"].items()}
        yield Figure("fidelity", case, "filled", mean(bits.values()), "bits per byte")
        for domain, value in bits.items():
            yield Figure("fidelity", f"{case}, {domain}", "filled", value, "bits per byte")


def _first_documents(folder: Path) -> Path:
    """A corpus of every domain's first documents."""
    table = pq.read_table(folder / "validation.parquet")
    domains = np.array(table.column("domain").to_pylist())
    kept = np.sort(np.concatenate([np.flatnonzero(domains == domain)[:DOCUMENTS] for domain in sorted(set(domains))]))
    (KEPT / "corpus").mkdir(parents=True, exist_ok=True)
    pq.write_table(table.take(kept), KEPT / "corpus" / "validation.parquet")
    return KEPT / "corpus"


def _make(stage: Stage) -> None:
    """Makes what is not there yet."""
    executor = make_executor(ExecutorConfig(kind="inline"))
    try:
        run_stages([stage], executor)
    finally:
        executor.close()


def _case(case: str, stage: AlignedStage, worker: AlignWorker, k: int) -> Iterator[Figure]:
    stage = replace(stage, config=AlignConfig(k=k))
    sums, given, own = _measured(stage, replace(worker, stage=stage), k)
    by_domain = {domain: summary({domain: found}) for domain, found in sums.items()}
    names = {"own": "own_bits_per_byte", "aligned": "aligned_bits_per_byte", "cost": "cost"}
    names |= {"filled": "filled_bits_per_byte", "hits": "hits", "blind_hits": "blind_hits"}
    for metric, name in names.items():
        unit = "of positions" if name in ("hits", "blind_hits") else "bits per byte"
        yield Figure("fidelity", case, metric, mean(found[name] for found in by_domain.values()), unit)
    costs = [found["cost"] for found in by_domain.values()]
    yield Figure("fidelity", case, "lowest_cost", min(costs), "bits per byte")
    yield Figure("fidelity", case, "highest_cost", max(costs), "bits per byte")
    for size, (ratio, own_ratio) in enumerate(zip(ratios(given), ratios(own), strict=True), start=1):
        if ratio is not None and own_ratio:
            against = "the source on its own tokens"
            yield Figure("fidelity", case, f"given_{size}_bytes", ratio, "of found", against, ratio / own_ratio)
    for domain, found in by_domain.items():
        for metric, name in names.items():
            unit = "of positions" if name in ("hits", "blind_hits") else "bits per byte"
            yield Figure("fidelity", f"{case}, {domain}", metric, found[name], unit)


def _measured(stage: AlignedStage, worker: AlignWorker, k: int) -> tuple[Fidelity, Calibration, Calibration]:
    """Of the only part: fidelity, and the calibration of the aligned distributions and of the source's own."""
    (unit,) = stage.units()
    inputs = worker.read(unit)
    target = None if inputs.target is None else _cut(inputs.target, k)
    inputs = replace(inputs, source=_cut(inputs.source, k), target=target)
    said, probs, _, gold = worker.align(inputs, judged=True)
    assert gold is not None
    domains = inputs.tokens.column("domain").to_pylist()
    ends = (inputs.target_ends, gold, inputs.source_ends, inputs.token_nll)
    labels, _ = next_tokens(inputs.target_ids, inputs.target_ends)
    own_labels, _ = next_tokens(inputs.source_ids, inputs.source_ends)
    own_probs = np.exp(inputs.source.logprobs.astype(np.float32))
    lengths, own_lengths = worker.target.table.byte_lengths, worker.source.table.byte_lengths
    return (
        fidelity(domains, inputs.target_ids, *ends),
        calibration(said, probs, gold.judged, labels, lengths),
        calibration(inputs.source, own_probs, own_labels >= 0, own_labels, own_lengths),
    )


def _cut(said: Distributions, k: int) -> Distributions:
    """What shards of k entries would hold: the others are part of the tail."""
    ids, logprobs = said.padded()
    probs = np.exp(logprobs.astype(np.float64))
    tail = said.tail.astype(np.float64) + probs[:, k:].sum(axis=1)
    return Distributions.from_padded(ids[:, :k], logprobs[:, :k], np.minimum(said.counts, k), tail)
