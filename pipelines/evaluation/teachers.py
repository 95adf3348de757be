"""How good the teachers of the run's trainings are: what the fused distributions give held-out text, per domain.

A teacher whose gate looks at a chunk's likelihood (MinCE, AvgCE, the feature `nll_per_byte`) has seen the text that it
is scored on; `eval.text.ensembles` has the mixtures that look at nothing behind a position.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fusionx.contract.errors import DamageError
from fusionx.contract.files.sealed import read_sealed, write_sealed
from fusionx.contract.files.storage import exists
from fusionx.contract.shards.manifest import read_manifest
from fusionx.contract.shards.next_token import least_probability
from fusionx.eval.text.ensembles import AlignedSplit
from fusionx.eval.text.perplexity import Chunk, ChunkScore, aggregate, overall
from fusionx.train.config import MethodConfig, TrainJob

_CHUNKS_AT_ONCE = 32


def has_teacher_figures(method: MethodConfig) -> bool:
    """Whether its teacher is a mixture with one weight per candidate and position."""
    return method.teacher != "none" and not (method.teacher == "asn" and method.selection.granularity == "element")


def evaluate_teacher(job: TrainJob, shards: AlignedSplit, output: str) -> dict[str, Any]:
    """`teacher_figures` of a finished training, kept in `output` until the training or the shards change.

    Raises:
        DataError: as `teacher_figures`.
    """
    manifests = [(shards.tokens, "tokens"), *((folder, "aligned") for folder in job.aligned.values())]
    identity = {
        "job": job.digest(),
        "split": shards.split,
        "inputs": [read_manifest(folder, kind, "align").digest for folder, kind in manifests],
    }
    if exists(output):
        try:
            found = read_sealed(output, "it is computed anew")
            if all(found.get(name) == value for name, value in identity.items()):
                return found
        except DamageError as error:
            print(f"[eval] a teacher is scored anew. {error}", file=sys.stderr, flush=True)
    result = {**identity, **teacher_figures(job, shards.vocab_size, shards.split)}
    write_sealed(output, result, finite=True)
    return result


def teacher_figures(job: TrainJob, vocab_size: int, split: str) -> dict[str, Any]:
    """Bits per byte that a training's teacher gives the next tokens of a split, at the gate of its best step.

    The weights of the chosen candidates times the exact probabilities of the next token; what k cut off is an even
    share of the tail, and of no tail the least (`contract.shards.next_token`). The target stands in where nobody is
    aligned.

    Returns:
        `domains` and `overall` as in `eval.evaluate.evaluate_model`.

    Raises:
        DataError: shards or the export of the selection network are missing or damaged.
    """
    import torch

    from fusionx.train.data.collate import collate
    from fusionx.train.data.shard_stream import ShardSet
    from fusionx.train.objective.teacher import label_probability, select
    from fusionx.train.state.export import load_asn

    shards = ShardSet(job.tokens, dict(sorted(job.aligned.items())), split, job.method.k)
    asn = None
    if job.method.teacher == "asn":
        asn, _ = load_asn(Path(job.output) / "best")
        asn.eval()
    target = sorted(job.aligned).index(job.target)
    chunks: list[Chunk] = []
    scores: list[ChunkScore] = []
    for places in _groups(shards.rows):
        samples = [sample for sample in (shards.sample(*place) for place in places) if len(sample.next_ids)]
        if not samples:
            continue
        candidates = collate(samples, 0).candidates
        assert candidates is not None
        with torch.no_grad():
            weights = select(job.method, asn, candidates, vocab_size).weights
            said = label_probability(candidates, vocab_size).clamp(min=least_probability(vocab_size))
            given = torch.where((weights > 0).any(-1), (weights * said).sum(-1), said[:, target])
        nll = -given.double().log().numpy()
        firsts = np.cumsum([0, *(len(sample.next_ids) for sample in samples)])
        for sample, first in zip(samples, firsts, strict=False):
            tokens = len(sample.input_ids) - 1
            of_text = float(nll[first : first + tokens].sum())
            chunks.append({"doc_id": sample.key[0], "chunk": sample.key[1], "domain": sample.domain, "text": ""})
            scores.append(ChunkScore(of_text, tokens, int(sample.ends[-1] - sample.ends[0])))
    found = aggregate(chunks, scores)
    return {"domains": found.domains, "overall": overall(found.domains)}


def _groups(rows: list[int]) -> Iterator[list[tuple[int, int]]]:
    for part, count in enumerate(rows):
        for start in range(0, count, _CHUNKS_AT_ONCE):
            yield [(part, row) for row in range(start, min(start + _CHUNKS_AT_ONCE, count))]
