"""The whole system on one card, in ratios to the bare forward pass of the same run; at most eight minutes on an H200.

Without a GPU everything runs in sizes that show nothing but that it works. `--output` appends to its gpu.jsonl, every
line with the card, the versions and the date.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fusionx.benchmarks import train
from fusionx.benchmarks.measuring.cluster_simulation import Cluster, UnitTimes, simulate
from fusionx.benchmarks.measuring.figure import Figure, interleaved_seconds
from fusionx.benchmarks.measuring.random_shards import Shape
from fusionx.benchmarks.precompute import Case, Contest, race, random_contest, source_texts, train_tokenizer
from fusionx.contract.shards.codec import read_distributions, read_token_nll
from fusionx.contract.shards.parts import read_part, write_part
from fusionx.precompute.logits.batches import UnitTokens
from fusionx.precompute.logits.logits_stage import table_of
from fusionx.precompute.logits.top_k import top_k_statistics

DISPATCH_SECONDS = 0.010
"""Of the driver for one unit under Ray Data, by hand: 1,000 empty units in 10 s."""


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    `models` are cases with their number of logits, over text that is tokenized for `vocab` ids. `statistics` are pairs
    of vocabulary and k, over so many `positions`. `trainings` None: those that `fusionx bench train` has.
    """

    models: Sequence[tuple[Case, int]]
    vocab: int
    source_files: int | None
    statistics: Sequence[tuple[int, int]]
    positions: int
    trainings: Sequence[train.Case] | None
    clusters: Sequence[Cluster]
    rounds: int


CLUSTERS = (Cluster(1, 1, 16, 6), Cluster(1, 8, 128, 6), Cluster(32, 8, 128, 6))
ON_A_CARD = Sizes(
    models=(
        (Case("160M", 768, 12, 12, 3072, 2_000_000, "cuda"), 32_000),
        (Case("160M, 262k ids", 768, 12, 12, 3072, 1_000_000, "cuda"), 262_144),
        (Case("1B", 2048, 16, 32, 8192, 1_000_000, "cuda"), 128_256),
        (Case("7B", 4096, 32, 32, 11008, 300_000, "cuda"), 32_000),
    ),
    vocab=32_000,
    source_files=None,
    statistics=tuple((vocab, k) for vocab in (32_000, 151_936, 262_144) for k in (10, 32, 64)),
    positions=1024,
    trainings=None,
    clusters=CLUSTERS,
    rounds=2,
)
WITHOUT = Sizes(
    models=((Case("0.1M", 32, 1, 2, 64, 1_000), 400),),
    vocab=400,
    source_files=20,
    statistics=((1_000, 8),),
    positions=64,
    trainings=(train.Case("tiny", (8, 1, 1, 8), Shape(32, 2, 600, 4), 2),),
    clusters=(Cluster(1, 8, 32, 6), Cluster(2, 8, 32, 6)),
    rounds=1,
)


def figures(sizes: Sizes | None = None) -> Iterator[Figure]:
    sizes = sizes or (ON_A_CARD if torch.cuda.is_available() else WITHOUT)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    for vocab, k in sizes.statistics:
        yield from _statistics(vocab, k, sizes.positions)
    texts = source_texts(sizes.source_files)
    with TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(Path(folder) / "tokenizer", sizes.vocab, texts)
        for number, (case, head) in enumerate(sizes.models):
            contest = random_contest(case, head, tokenizer, texts, Path(folder) / str(number))
            yield from _precompute(case.name, contest, sizes)
            del contest  # the card has room for one model
    for figure in train.figures(sizes.trainings, n=max(sizes.rounds, 2)):
        yield replace(figure, bench="gpu", case=f"train {figure.case}")


def _statistics(vocab: int, k: int, positions: int) -> Iterator[Figure]:
    """Beside logsumexp over the same bf16 logits, which is a single number of a position."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    logits = (torch.randn(positions, vocab, device=device) * 3).bfloat16()
    scratch, labels = logits.clone(), torch.zeros(positions, dtype=torch.long, device=device)
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: top_k_statistics(scratch, labels, k, vocab),
        "logsumexp": lambda: torch.logsumexp(logits, -1),
    }
    # Every call takes the k best away; the next one finds others, which is the same work.
    seconds = interleaved_seconds({name: partial(_finished, work) for name, work in works.items()}, 20)
    ratio = seconds["logsumexp"] / seconds["ours"]
    case = f"statistics, V={vocab}, k={k}"
    yield Figure("gpu", case, "tokens_per_s", positions / seconds["ours"], "tokens/s", "logsumexp", ratio, 20)


def _finished(work: Callable[[], object]) -> None:
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _precompute(name: str, contest: Contest, sizes: Sizes) -> Iterator[Figure]:
    """The whole worker beside the bare forward pass; what one unit takes, step by step; and clusters made of these."""
    case = f"precompute {name}"
    speed = {}
    for figure in race(case, [contest], sizes.rounds, None, bench="gpu"):
        speed[figure.metric] = figure.value
        yield figure
    plans = [contest.worker.plan(UnitTokens.of(encodings)) for encodings in contest.encodings()]
    shapes = [shape for plan in plans for shape in plan.shapes]
    yield Figure("gpu", case, "batches", len(shapes), "batches")
    yield Figure("gpu", case, "distinct_shapes", len(set(shapes)), "shapes")
    unit = _unit_times(contest, speed["bare_tokens_per_s"])
    host = (unit.prepare + unit.finish) / unit.tokens
    yield Figure("gpu", case, "host_us_per_token", 1e6 * host, "us of a core")
    yield Figure("gpu", case, "cores_per_gpu", host * speed["bare_tokens_per_s"], "cores busy at the bare speed")
    for cluster in sizes.clusters:
        outcome = simulate(unit, cluster, 40 * cluster.hosts * cluster.gpus)
        simulated = f"{case}, simulated {cluster.hosts} x {cluster.gpus} GPUs, {cluster.cores} cores"
        yield Figure("gpu", simulated, "efficiency", outcome.efficiency, "of the cards")
        yield Figure("gpu", simulated, "storage", outcome.bytes_per_s / 1e6, "MB/s")


def _unit_times(contest: Contest, bare: float) -> UnitTimes:
    """CPU seconds of this thread and those it starts, median over up to five units; the device as fast as bare."""
    prepare, finish, tokens, sizes = [], [], [], []
    worker, stage = contest.worker, contest.worker.stage
    for unit in contest.units[:5]:
        started = time.process_time()
        chunks, _ = read_part(unit.inputs["chunks"], "chunks", sha256=unit.hashes["chunks"])
        encodings = worker.encoder.encode(chunks.column("text").to_pylist())
        worker.plan(UnitTokens.of(encodings))
        prepare.append(time.process_time() - started)
        path = f"{stage.output}/{unit.part}"  # which the race has written
        table, provenance = read_part(path, "logits")
        distributions = read_distributions(table)
        token_nll = read_token_nll(table, distributions)
        started = time.process_time()
        again = table_of(chunks, encodings, distributions, token_nll)
        entry = write_part(path, again, provenance, len(token_nll))
        finish.append(time.process_time() - started)
        tokens.append(entry.tokens)
        sizes.append(entry.bytes + Path(unit.inputs["chunks"]).stat().st_size)
    middle = statistics.median(tokens)
    return UnitTimes(
        dispatch=DISPATCH_SECONDS,
        prepare=statistics.median(prepare),
        device=middle / bare,
        finish=statistics.median(finish),
        tokens=middle,
        bytes=statistics.median(sizes),
    )
