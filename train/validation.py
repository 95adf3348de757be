"""Held-out bits per byte of the target while it trains, per domain, on the validation split's tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from contract.errors import DataError
from train.collate import collate
from train.losses import run_head
from train.model import Target
from train.stream import Sample, ShardSet

_LOG2 = math.log(2)


class Validation:
    """Holds the validation batches; a call measures the target as it stands.

    `trained_domains` are those of the training text. The best step is chosen on them alone: who trains on a corpus of
    their own has held-out text of that corpus, and no text of what may be forgotten.
    """

    def __init__(self, tokens: str, batch_tokens: int, pad_id: int, trained_domains: set[str]) -> None:
        shards = ShardSet(tokens, {}, "validation")
        samples = [shards.sample(part, row) for part, rows in enumerate(shards.rows) for row in range(rows)]
        self._samples = [sample for sample in samples if len(sample.input_ids) > 1]
        if not self._samples:
            raise DataError(
                "There is nothing to validate on.",
                file=tokens,
                field="split validation",
                found="no chunk of two tokens or more",
                remedy="give the validation split more text",
            )
        self._trained = trained_domains & {sample.domain for sample in self._samples}
        self._batches = [(batch, collate(batch, pad_id)) for batch in _by_length(self._samples, batch_tokens)]

    @torch.no_grad()
    def __call__(
        self, target: Target, device: torch.device, dtype: torch.dtype | None, head_block: int
    ) -> dict[str, Any]:
        """Bits per byte (mean over domains) of all and of the trained domains, perplexity, and both per domain."""
        was_training = target.training
        target.eval()
        sums: dict[str, list[float]] = {}
        for samples, cpu_batch in self._batches:
            batch = cpu_batch.to(device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                hidden = target.hidden(batch.input_ids, batch.attention_mask)[batch.predicts]
                nll = run_head(target.logits, hidden, batch.labels, None, head_block).label_nll
            per_chunk = nll.double().cpu().split([len(sample.input_ids) - 1 for sample in samples])
            for sample, chunk_nll in zip(samples, per_chunk, strict=True):
                of_domain = sums.setdefault(sample.domain, [0.0, 0, 0])
                of_domain[0] += float(chunk_nll.sum())
                of_domain[1] += len(chunk_nll)
                of_domain[2] += int(sample.ends[-1] - sample.ends[0])
        target.train(was_training)
        domains = {name: _measures(*sums[name]) for name in sorted(sums)}
        nll, tokens, _ = (sum(column) for column in zip(*sums.values(), strict=True))
        return {
            "bits_per_byte": _mean_bits(domains, set(domains)),
            "trained_bits_per_byte": _mean_bits(domains, self._trained or set(domains)),
            "perplexity": _perplexity(nll, tokens),
            "domains": domains,
        }


def _mean_bits(domains: dict[str, dict[str, float]], chosen: set[str]) -> float:
    return sum(domains[name]["bits_per_byte"] for name in sorted(chosen)) / len(chosen)


def _measures(nll: float, tokens: float, covered_bytes: float) -> dict[str, float]:
    return {"bits_per_byte": nll / _LOG2 / max(covered_bytes, 1), "perplexity": _perplexity(nll, tokens)}


def _perplexity(nll: float, tokens: float) -> float:
    """exp of the mean NLL; infinity where that is no float (a target that diverged)."""
    try:
        return math.exp(nll / tokens)
    except OverflowError:
        return math.inf


def _by_length(samples: list[Sample], batch_tokens: int) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for sample in sorted(samples, key=lambda sample: (-len(sample.input_ids), sample.key)):
        if batch and (len(batch) + 1) * len(batch[0].input_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch
