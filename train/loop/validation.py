"""Held-out bits per byte of the target while it trains, per domain, on the validation split's tokens."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from fusionx.contract.errors import DataError
from fusionx.contract.shapes import EXACT, Shapes, batches_by_length
from fusionx.train.data.collate import Batch, collate_blocks
from fusionx.train.data.shard_stream import ShardSet
from fusionx.train.distributed.collectives import World
from fusionx.train.model.target import TextInputs

_LOG2 = math.log(2)


class Validation:
    """Holds the validation batches; a call measures the target as it stands.

    `trained_domains` are those of the training text. The best step is chosen on them alone: who trains on a corpus of
    their own has held-out text of that corpus, and no text of what may be forgotten.
    """

    def __init__(
        self,
        tokens: str,
        batch_tokens: int,
        pad_id: int,
        trained_domains: set[str],
        shapes: Shapes = EXACT,
        longest: int | None = None,
    ) -> None:
        shards = ShardSet(tokens, {}, "validation")
        found = [shards.sample(part, row) for part, rows in enumerate(shards.rows) for row in range(rows)]
        samples = sorted((one for one in found if len(one.input_ids) > 1), key=lambda one: one.key)
        if not samples:
            raise DataError(
                "There is nothing to validate on.",
                file=tokens,
                field="split validation",
                found="no chunk of two tokens or more",
                remedy="give the validation split more text",
            )
        self._tokens: defaultdict[str, int] = defaultdict(int)
        self._bytes: defaultdict[str, int] = defaultdict(int)
        for sample in samples:
            self._tokens[sample.domain] += len(sample.input_ids) - 1
            self._bytes[sample.domain] += int(sample.ends[-1] - sample.ends[0])
        self._domains = sorted(self._tokens)
        self._trained = trained_domains & set(self._domains)
        self._batches = [
            collate_blocks(
                [[samples[row]] for row in batch.rows] + [[]] * (batch.size - len(batch.rows)),
                pad_id,
                domains=self._domains,
                shapes=shapes,
                longest=longest,
            ).in_one_piece()
            for batch in batches_by_length([len(one.read_ids) for one in samples], batch_tokens, shapes, longest)
        ]

    @torch.no_grad()  # in inference mode, autocast would cast the weights anew for every batch
    def __call__(self, model: nn.Module, world: World, dtype: torch.dtype | None, head_block: int) -> dict[str, Any]:
        """Bits per byte (mean over domains) of all and of the trained domains, perplexity, and both per domain.

        The processes share the batches; every process must call it, and gets the same result.

        Args:
            model: a `train.model.target.Target`, as `train.distributed.collectives.parallelize` gives it. dtype: of
            autocast; None: without.
        """
        was_training = model.training
        model.eval()
        nats = torch.zeros(len(self._domains), dtype=torch.float64, device=world.device)
        with torch.autocast(world.device.type, dtype=dtype, enabled=dtype is not None):
            # All call the model equally often, because a divided one exchanges weights in every call.
            for start in range(0, len(self._batches), world.size):
                mine = start + world.rank
                batch = self._batches[min(mine, len(self._batches) - 1)].to(world.device)
                nll = model(TextInputs(batch.input_ids, None), batch.positions, batch.labels, head_block)
                if mine < len(self._batches):
                    nats += self._by_domain(batch, nll)
        model.train(was_training)
        nll_of = dict(zip(self._domains, world.sum(nats).tolist(), strict=True))
        domains = {name: _measures(nll_of[name], self._tokens[name], self._bytes[name]) for name in self._domains}
        return {
            "bits_per_byte": _mean_bits(domains, set(domains)),
            "trained_bits_per_byte": _mean_bits(domains, self._trained or set(domains)),
            "perplexity": _perplexity(sum(nll_of.values()), sum(self._tokens.values())),
            "domains": domains,
        }

    def _by_domain(self, batch: Batch, nll: Tensor) -> Tensor:
        """Sums of `nll` [N], which is 0 where a position only fills up; float64 [domains]."""
        row = batch.positions // batch.input_ids.shape[1]  # each holds one chunk, but those that only fill up
        domain = batch.domains[row.clamp(max=len(batch.domains) - 1)]
        every = torch.arange(len(self._domains), device=nll.device)
        # A product sums in a fixed order on a GPU, too, which scattered additions do not.
        return (every[:, None] == domain).double() @ nll.double()


def _mean_bits(domains: dict[str, dict[str, float]], chosen: set[str]) -> float:
    return sum(domains[name]["bits_per_byte"] for name in sorted(chosen)) / len(chosen)


def _measures(nll: float, tokens: int, covered_bytes: int) -> dict[str, float]:
    return {"bits_per_byte": nll / _LOG2 / max(covered_bytes, 1), "perplexity": _perplexity(nll, tokens)}


def _perplexity(nll: float, tokens: int) -> float:
    """exp of the mean NLL; infinity where that is no float (a target that diverged)."""
    try:
        return math.exp(nll / tokens)
    except OverflowError:
        return math.inf
