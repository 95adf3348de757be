"""Ensembles of the candidates, scored on held-out text straight from its aligned shards: no model runs.

Every candidate, and every mixture of them that needs no training, is scored on the same next tokens of the target's
tokenizer. What the shards do not say exactly, the tail beyond the k entries, costs candidates and ensembles alike
(`contract.shards.next_token`); models that are run do not pay it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fusionx.contract.errors import DamageError, DataError
from fusionx.contract.files.sealed import read_sealed, write_sealed
from fusionx.contract.files.storage import exists, join
from fusionx.contract.shards.codec import probabilities, read_distributions, read_tokens
from fusionx.contract.shards.fixed_share import fixed_share_weights
from fusionx.contract.shards.manifest import Manifest, read_manifest
from fusionx.contract.shards.next_token import gold_probabilities, next_tokens
from fusionx.contract.shards.parts import PartEntry, Ragged, match_rows, read_part
from fusionx.eval.text.perplexity import Chunk, ChunkScore, aggregate, overall

TEMPERATURE = 1.0
"""Of PackLLM-sim, as in the authors' code; the weights are then inverse perplexities."""

_VERSION = 3
"""Of the scores: 2 has `fixed_share`, 3 `documents`."""


@dataclass(frozen=True)
class AlignedSplit:
    """Where the aligned shards of a held-out split lie.

    tokens: folder of the target's tokens. aligned: candidate id -> folder of its aligned shards, the target first.
    vocab_size: ids of the target's tokenizer.
    """

    split: str
    tokens: str
    aligned: dict[str, str]
    vocab_size: int


def mix(
    gold: npt.NDArray[np.float64],
    aligned: npt.NDArray[np.bool_],
    log_perplexity: npt.NDArray[np.float64],
    shares: npt.NDArray[np.float64],
) -> dict[str, npt.NDArray[np.float64]]:
    """Probability that each ensemble gives every position's next token.

    At least one candidate is aligned at every position; the others have no part in it. Ensembles mix probabilities.

    - `uniform`: the mean.
    - `top1_ppl`: the candidate with the lowest perplexity on the text so far, the first of several (Top1-PPL, a
      baseline of Mavromatis et al. 2024, "Pack of LLMs: Model Fusion at Test-Time via Perplexity Optimization",
      arXiv 2404.11531).
    - `packllm_sim`: weights softmax(-log perplexity / temperature) over the text so far (PackLLM-sim, same paper;
      there they mix logits, which top-k shards do not have).
    - `fixed_share`: weights that follow what foretold the text so far (`contract.shards.fixed_share`).
    - `oracle`: the candidate that gives the next token most. It looks at the answer: a ceiling, no model.

    Args:
        gold: float64 [N, M], what each candidate gives the next token. aligned: bool [N, M].
        log_perplexity: [N, M], nats per token on the text so far (`prompt_log_perplexity`).
        shares: [N, M], the weights of `fixed_share`.

    Returns:
        name -> float64 [N].
    """
    said = np.where(aligned, gold, 0.0)
    best = np.where(aligned, log_perplexity, np.inf).argmin(axis=1)
    perplexities, shared = (np.where(aligned, w, 0.0) for w in (np.exp(-log_perplexity / TEMPERATURE), shares))
    return {
        "uniform": said.sum(axis=1) / aligned.sum(axis=1),
        "top1_ppl": np.take_along_axis(said, best[:, None], axis=1)[:, 0],
        "packllm_sim": (perplexities * said).sum(axis=1) / perplexities.sum(axis=1),
        "fixed_share": (shared * said).sum(axis=1) / shared.sum(axis=1),
        "oracle": said.max(axis=1),
    }


def prompt_log_perplexity(nll: npt.NDArray[np.float64], offsets: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Log perplexity of every candidate on the part of a chunk that a position has read; 0 where that predicts nothing.

    The published methods weigh models by their perplexity on a prompt. Running text has none, so the chunk so far
    takes its place: at position l the tokens up to l, of which the first is not predicted. The next token has no say in
    its own weights. All candidates are scored on the same tokens, so nats per token compare them as nats per byte do.

    Args:
        nll: float64 [N, M], nats of the next token of every position. offsets: [rows + 1], where chunks begin.

    Returns:
        float64 [N, M], nats per token.
    """
    before = np.zeros_like(nll)
    for start, end in pairwise(offsets.tolist()):
        # Chunk by chunk: a sum over the whole part would carry the rounding of other chunks into this one's ties.
        np.cumsum(nll[start : max(end - 1, start)], axis=0, out=before[start + 1 : end])
    predicted = np.arange(len(nll)) - np.repeat(offsets[:-1], np.diff(offsets))
    return before / np.maximum(predicted, 1)[:, None]


def evaluate_ensembles(shards: AlignedSplit, output: str | None = None) -> dict[str, Any]:
    """Scores candidates and ensembles and writes the result to `output` (whole or not at all).

    A candidate by itself has the target's probability where it is not aligned, and the target an equal share for every
    token where it is not. An `output` that exists and was made from the same shards is returned as it is.

    Returns:
        `split`, `vocab_size`, `inputs` (digests), `positions` with a next token, `unaligned` (those of them where no
        candidate is aligned: the target stands in), `candidates` and `ensembles`: name -> {`domains`, `overall`,
        `documents`} as in `eval.evaluate.evaluate_model`.

    Raises:
        DataError: shards are missing or damaged, do not belong together, or have no token to predict.
    """
    tokens = read_manifest(shards.tokens, "tokens", "align")
    manifests = {name: read_manifest(folder, "aligned", "align") for name, folder in shards.aligned.items()}
    identity = {
        "version": _VERSION,
        "split": shards.split,
        "vocab_size": shards.vocab_size,
        "inputs": {"tokens": tokens.digest} | {f"aligned/{name}": found.digest for name, found in manifests.items()},
    }
    if output is not None:
        finished = _finished(output, identity)
        if finished is not None:
            return finished
    scores = _Scores()
    for entry in tokens.parts_of(shards.split):
        scores.add(*_read(shards, entry, manifests))
    result = {**identity, "positions": scores.positions, "unaligned": scores.unaligned, **scores.figures()}
    if output is not None:
        write_sealed(output, result, finite=True)
    return result


def _finished(output: str, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The existing result if it was made from these very shards, else None."""
    if not exists(output):
        return None
    try:
        found = read_sealed(output, "it is computed anew")
    except DamageError as error:
        print(f"[eval] ensembles are scored anew. {error}", file=sys.stderr, flush=True)
        return None
    same = all(found.get(name) == value for name, value in identity.items())
    # The same candidates in another order are another question: the target comes first.
    return found if same and list(found["inputs"]) == list(identity["inputs"]) else None


@dataclass(frozen=True)
class _GoldPart:
    """One part. gold: float64 [N, M]. aligned: bool [N, M]. labels, sizes: int64 [N] (`next_tokens`)."""

    offsets: npt.NDArray[np.integer]
    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    gold: npt.NDArray[np.float64]
    aligned: npt.NDArray[np.bool_]


def _read(
    shards: AlignedSplit, entry: PartEntry, manifests: dict[str, Manifest]
) -> tuple[list[Chunk], list[str], _GoldPart]:
    """The chunks of a part, the candidates, and what each of them gives every next token."""
    path = join(shards.tokens, entry.name)
    tokens, _ = read_part(path, "tokens", sha256=entry.sha256)
    input_ids, ends = read_tokens(tokens)
    labels, sizes = next_tokens(input_ids, ends)
    # One candidate's part at a time is in memory, and of it only one number per position is kept.
    said = [
        _gold(_candidate(name, shards.aligned[name], found, entry, tokens, path), labels, shards.vocab_size)
        for name, found in manifests.items()
    ]
    gold, aligned = (np.stack(columns, axis=1) for columns in zip(*said, strict=True))
    chunks: list[Chunk] = tokens.select(["doc_id", "domain"]).to_pylist()
    return chunks, list(manifests), _GoldPart(input_ids.offsets, labels, sizes, gold, aligned)


def _candidate(
    name: str, folder: str, manifest: Manifest, entry: PartEntry, tokens: pa.Table, tokens_path: str
) -> pa.Table:
    """A candidate's rows of one part, in the order of the target's tokens."""
    listed = next((part for part in manifest.parts if part.name == entry.name), None)
    if listed is None:
        raise DataError(
            f"The aligned shards of '{name}' do not cover the target's tokens.",
            file=folder,
            found=f"no {entry.name}",
            expected=f"the parts of {tokens_path.removesuffix('/' + entry.name)}",
            remedy="run `fusionx precompute` and `fusionx align` for this source",
        )
    path = join(folder, entry.name)
    table, _ = read_part(path, "aligned", sha256=listed.sha256)
    return match_rows(tokens, table, tokens_path, path)


def _gold(
    table: pa.Table, labels: npt.NDArray[np.int64], vocab_size: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """What one candidate gives every next token, float64 [N], and where it says anything, bool [N]."""
    said = read_distributions(table)
    _, logprobs = said.padded(max(1, said.k))
    kept = np.arange(logprobs.shape[1]) < said.counts[:, None]
    probs = probabilities(logprobs, said.tail, np.float64)[kept]
    gold, _ = gold_probabilities(said, probs, labels, vocab_size)
    status = Ragged.from_column(table.column("status")).values
    return gold, (status > 0) & (said.counts > 0)


@dataclass
class _Scores:
    """Sums per chunk of every candidate and ensemble, part after part."""

    positions: int = 0
    unaligned: int = 0
    chunks: list[Chunk] = field(default_factory=list)
    candidates: dict[str, list[ChunkScore]] = field(default_factory=dict)
    ensembles: dict[str, list[ChunkScore]] = field(default_factory=dict)

    def add(self, chunks: list[Chunk], names: Sequence[str], part: _GoldPart) -> None:
        aligned, predicts = part.aligned.copy(), part.labels >= 0
        nobody = ~aligned.any(axis=1)
        self.positions += int(predicts.sum())
        self.unaligned += int((predicts & nobody).sum())
        aligned[nobody, 0] = True
        alone = np.where(aligned, part.gold, part.gold[:, :1])
        shares = fixed_share_weights(np.where(aligned, part.gold, np.nan), part.offsets)
        mixed = mix(part.gold, aligned, prompt_log_perplexity(-np.log(alone), part.offsets), shares)
        self.chunks += chunks
        for kind, found in ((self.candidates, dict(zip(names, alone.T, strict=True))), (self.ensembles, mixed)):
            for name, probs in found.items():
                kind.setdefault(name, []).extend(_chunk_scores(part, probs))

    def figures(self) -> dict[str, Any]:
        """`candidates` and `ensembles`, see `evaluate_ensembles`."""
        return {
            kind: {name: _figures(self.chunks, scores) for name, scores in getattr(self, kind).items()}
            for kind in ("candidates", "ensembles")
        }


def _chunk_scores(part: _GoldPart, probs: npt.NDArray[np.float64]) -> Iterator[ChunkScore]:
    """Sums over the next tokens of every chunk; the first token of a chunk is none."""
    predicts = part.labels >= 0
    rows = np.repeat(np.arange(len(part.offsets) - 1), np.diff(part.offsets))
    columns = (np.where(predicts, -np.log(probs), 0.0), predicts, part.sizes)
    nll, tokens, sizes = (np.bincount(rows, column, len(part.offsets) - 1) for column in columns)
    for sums in zip(nll.tolist(), tokens.tolist(), sizes.tolist(), strict=True):
        yield ChunkScore(sums[0], int(sums[1]), int(sums[2]))


def _figures(chunks: Sequence[Chunk], scores: Sequence[ChunkScore]) -> dict[str, Any]:
    found = aggregate(chunks, scores)
    return {"domains": found.domains, "overall": overall(found.domains), "documents": found.documents}
