"""Held-out bits per byte of the target while it trains, per domain, on the validation split's tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fusionx.contract.errors import DataError
from fusionx.train.data.collate import collate
from fusionx.train.data.shard_stream import Sample, ShardSet
from fusionx.train.distributed.collectives import World
from fusionx.train.model.target import TextInputs

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
        self._domains = sorted({sample.domain for sample in self._samples})
        self._batches = [(batch, collate(batch, pad_id)) for batch in _by_length(self._samples, batch_tokens)]

    @torch.no_grad()
    def __call__(self, model: nn.Module, world: World, dtype: torch.dtype | None, head_block: int) -> dict[str, Any]:
        """Bits per byte (mean over domains) of all and of the trained domains, perplexity, and both per domain.

        The processes share the batches; every process must call it, and gets the same result.

        Args:
            model: a `train.model.target.Target`, as `train.distributed.collectives.parallelize` gives it. dtype: of
            autocast; None: without.
        """
        was_training = model.training
        model.eval()
        sums = torch.zeros(len(self._domains), 3, dtype=torch.float64)  # NLL, tokens, bytes
        # All call the model equally often, because a divided one exchanges weights in every call.
        for start in range(0, len(self._batches), world.size):
            mine = start + world.rank
            samples, cpu_batch = self._batches[min(mine, len(self._batches) - 1)]
            batch = cpu_batch.to(world.device)
            inputs = TextInputs(batch.input_ids, batch.attention_mask, None)
            with torch.autocast(world.device.type, dtype=dtype, enabled=dtype is not None):
                nll = model(inputs, batch.predicts, batch.labels, head_block)
            if mine < len(self._batches):
                self._add(sums, samples, nll)
        model.train(was_training)
        sums = world.sum(sums.to(world.device)).cpu()
        domains = {name: _measures(*row) for name, row in zip(self._domains, sums.tolist(), strict=True)}
        nats, tokens, _ = sums.sum(0).tolist()
        return {
            "bits_per_byte": _mean_bits(domains, set(domains)),
            "trained_bits_per_byte": _mean_bits(domains, self._trained or set(domains)),
            "perplexity": _perplexity(nats, tokens),
            "domains": domains,
        }

    def _add(self, sums: torch.Tensor, samples: list[Sample], nll: torch.Tensor) -> None:
        per_chunk = nll.double().cpu().split([len(sample.input_ids) - 1 for sample in samples])
        for sample, chunk_nll in zip(samples, per_chunk, strict=True):
            covered = int(sample.ends[-1] - sample.ends[0])
            row = torch.tensor([float(chunk_nll.sum()), len(chunk_nll), covered], dtype=torch.float64)
            sums[self._domains.index(sample.domain)] += row


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
