"""How well a model predicts held-out text: nats, tokens and bytes per chunk, and their aggregates per domain.

Perplexity is per token of the model's own tokenizer, so it compares models only where they share one; bits per byte
compares any two models over the same text.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusionx.contract.errors import DataError
from fusionx.contract.tokens.chat import CHAT, ChatEncoder, messages_of
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.encoding import Encoding, encode_batch, valid_text
from fusionx.eval.models.loaded_model import LoadedModel, batches_by_length

if TYPE_CHECKING:
    import torch

Chunk = Mapping[str, Any]
"""A held-out record with at least `domain`, `text` and `doc_id`; its `format` is `chat` if that is a conversation."""

POSITIONS_PER_SLICE = 1024
"""Positions whose log-softmax is held in fp32 at once: 131 MB for a vocabulary of 32,000."""


@dataclass(frozen=True)
class ChunkScore:
    """One chunk's sums: `nll` in nats over `tokens` predicted tokens, which spell `bytes` UTF-8 bytes."""

    nll: float
    tokens: int
    bytes: int


def score_chunks(loaded: LoadedModel, chunks: Sequence[Chunk], batch_tokens: int) -> list[ChunkScore]:
    """Scores every chunk by itself, in the order given.

    A BOS is put in front where the tokenizer does so by itself; then every token of the chunk is predicted. Without
    one, the first token has no prediction: `tokens` counts the predicted ones, and `bytes` leaves out the first
    token's bytes, so that nats and bytes speak of the same text. Batches are made by length, padded on the right
    within `batch_tokens` padded tokens; causal attention makes a chunk's score independent of its batch (up to
    rounding).

    Of a conversation, which the model reads by its own chat template, the answer is scored.

    Raises:
        DataError: a text holds a lone surrogate or is longer than the model's context, the model's template cannot
            write a conversation, or a score is not finite.
        ConfigError: the model has no chat template, and the chunks are conversations.
    """
    encodings = _encode(loaded, chunks)
    lengths = [len(encoding.ids) for encoding in encodings]
    scores = [ChunkScore(0.0, 0, 0)] * len(chunks)
    scorable = [index for index, encoding in enumerate(encodings) if len(encoding.read.ids) >= 2]
    for batch in batches_by_length(
        [lengths[i] for i in scorable], lambda items, longest: items * longest, batch_tokens
    ):
        indices = [scorable[position] for position in batch]
        sums = _batch_nll(loaded, [encodings[index] for index in indices])
        for index, nll in zip(indices, sums, strict=True):
            if not math.isfinite(nll):
                raise _not_finite(loaded, chunks[index], nll)
            encoding = encodings[index]
            # The first end is 0 for a BOS, else the bytes of the first token, which nothing predicts.
            ends = encoding.read.ends
            scored_bytes = len(_scored_text(chunks[index]).encode()) - int(ends[0])
            scores[index] = ChunkScore(nll, len(ends) - 1, scored_bytes)
    return scores


def _scored_text(chunk: Chunk) -> str:
    return messages_of(chunk["text"])[-1]["content"] if chunk.get("format") == CHAT else str(chunk["text"])


def _encode(loaded: LoadedModel, chunks: Sequence[Chunk]) -> list[Encoding]:
    for chunk in chunks:
        if not valid_text(chunk["text"]):
            raise DataError("A held-out chunk is not valid Unicode text.", field="text", found=_name(chunk))
    texts = [chunk["text"] for chunk in chunks]
    if any(chunk.get("format") == CHAT for chunk in chunks):
        chat = ChatEncoder(str(loaded.folder), Encoder.of(loaded.tokenizer, loaded.table, loaded.adds_bos))
        chat.check()
        encodings = chat.encode(texts)
    else:
        encodings = encode_batch(loaded.tokenizer, loaded.table, texts, loaded.adds_bos)
    if loaded.max_positions is not None:
        for chunk, encoding in zip(chunks, encodings, strict=True):
            if len(encoding.ids) > loaded.max_positions:
                raise DataError(
                    "A held-out chunk is longer than the model's context.",
                    file=loaded.folder,
                    found=f"{len(encoding.ids)} tokens in {_name(chunk)}",
                    expected=f"at most {loaded.max_positions}",
                    remedy="cut the corpus for this model's tokenizer (list it among the sources) or lower block_size",
                )
    return encodings


def _batch_nll(loaded: LoadedModel, encodings: Sequence[Encoding]) -> list[float]:
    """Sum of the nats of what every sequence has behind its first token or its context, given all tokens before."""
    import torch

    longest = max(len(encoding.ids) for encoding in encodings)
    ids = torch.zeros(len(encodings), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = torch.as_tensor(encoding.ids, dtype=torch.long)
        mask[row, : len(encoding.ids)] = 1
    ids, mask = ids.to(loaded.device), mask.to(loaded.device)
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return [
            _sequence_nll(
                row_logits[encoding.context : len(encoding.ids) - 1], row_ids[encoding.context + 1 : len(encoding.ids)]
            )
            for row_logits, row_ids, encoding in zip(logits, ids, encodings, strict=True)
        ]


def _sequence_nll(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Nats of `labels` int64 [T] under `logits` [T, V]: log-softmax in fp32 per position, summed in fp64."""
    import torch

    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(labels), POSITIONS_PER_SLICE):
        part = slice(start, start + POSITIONS_PER_SLICE)
        nll = torch.nn.functional.cross_entropy(logits[part].float(), labels[part], reduction="none")
        total += nll.cpu().double().sum()
    return float(total)


def _not_finite(loaded: LoadedModel, chunk: Chunk, nll: float) -> DataError:
    return DataError(
        "The model's prediction of a held-out chunk is not a finite number.",
        file=loaded.folder,
        found=f"{nll} in {_name(chunk)}",
        remedy="look for NaN in the weights, or evaluate with dtype float32",
    )


def _name(chunk: Chunk) -> str:
    return f"document {chunk['doc_id']} of domain {chunk['domain']}"


@dataclass(frozen=True)
class HeldOut:
    """Aggregates of one model over the held-out text.

    Attributes:
        domains: domain -> {nll, tokens, bytes, perplexity, bits_per_byte, n_chunks, n_docs}, sorted by name.
        documents: domain -> [[nll, bytes], ...] ordered by document id; the units of the paired bootstrap.
    """

    domains: dict[str, dict[str, float]]
    documents: dict[str, list[list[float]]]


def aggregate(chunks: Sequence[Chunk], scores: Sequence[ChunkScore]) -> HeldOut:
    """Sums chunk scores per document and per domain."""
    by_document: dict[str, dict[Any, list[float]]] = defaultdict(dict)
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0, 0, 0])
    for chunk, score in zip(chunks, scores, strict=True):
        document = by_document[chunk["domain"]].setdefault(chunk["doc_id"], [0.0, 0])
        document[0] += score.nll
        document[1] += score.bytes
        total = totals[chunk["domain"]]
        for position, amount in enumerate((score.nll, score.tokens, score.bytes, 1)):
            total[position] += amount
    domains = {
        domain: {
            **_rates(nll, int(tokens), int(count)),
            "n_chunks": int(n_chunks),
            "n_docs": len(by_document[domain]),
        }
        for domain, (nll, tokens, count, n_chunks) in sorted(totals.items())
    }
    documents = {domain: [by_document[domain][doc] for doc in sorted(by_document[domain])] for domain in domains}
    for domain, figures in domains.items():
        if not figures["tokens"] or not figures["bytes"]:
            raise DataError("A held-out domain has no token to predict.", field="domain", found=domain)
    return HeldOut(domains, documents)


def overall(domains: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Over all domains: macro means, where every domain counts the same, and the pooled figures.

    `bits_per_byte` is the mean over domains; `perplexity` is exp of the mean over domains of nats per token (the
    geometric mean of the domains' perplexities, which no single hard domain dominates).
    """
    if not domains:
        return {}
    figures = list(domains.values())
    nll, tokens, count = (sum(item[key] for item in figures) for key in ("nll", "tokens", "bytes"))
    return {
        "bits_per_byte": math.fsum(item["bits_per_byte"] for item in figures) / len(figures),
        "perplexity": _exp(math.fsum(item["nll"] / item["tokens"] for item in figures) / len(figures)),
        "pooled": _rates(nll, int(tokens), int(count)),
    }


def _rates(nll: float, tokens: int, count: int) -> dict[str, float]:
    return {
        "nll": nll,
        "tokens": tokens,
        "bytes": count,
        "perplexity": _exp(nll / tokens) if tokens else math.nan,
        "bits_per_byte": nll / count / math.log(2) if count else math.nan,
    }


def _exp(value: float) -> float:
    """exp, capped where a double ends: a broken model must still be reported."""
    return math.exp(min(value, 700.0))
