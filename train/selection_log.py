"""Running means of the fusion weights: per candidate since the last log line, per domain since the last validation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from train.losses import Candidates


class SelectionLog:
    """Sums over positions where at least one candidate is aligned."""

    def __init__(self, candidates: list[str]) -> None:
        self._candidates = candidates
        self._step = _zeros(len(candidates))
        self._domains: dict[str, Tensor] = {}

    @property
    def empty(self) -> bool:
        return not self._domains

    def add(self, weights: Tensor, candidates: Candidates, domains: list[str]) -> None:
        """weights: [N, M], detached; candidates: the same positions; domains: of the chunks."""
        anywhere = candidates.aligned.any(-1)
        rows = torch.cat([weights, (weights > 0).to(weights.dtype), torch.ones_like(weights[:, :1])], -1)
        per_chunk = rows.new_zeros(len(domains), rows.shape[1])
        per_chunk.index_add_(0, candidates.chunk_of[anywhere], rows[anywhere])
        per_chunk = per_chunk.double().cpu()
        self._step += per_chunk.sum(0)
        for domain, row in zip(domains, per_chunk, strict=True):
            self._domains[domain] = self._domains.get(domain, 0) + row

    def since_last_step(self) -> dict[str, dict[str, float]]:
        """weight: mean fusion weight; selected: share of positions where the candidate was chosen. Starts afresh."""
        means = (self._step / self._step[-1].clamp(min=1)).tolist()
        self._step = _zeros(len(self._candidates))
        m = len(self._candidates)
        return {
            "weight": dict(zip(self._candidates, means[:m], strict=True)),
            "selected": dict(zip(self._candidates, means[m : 2 * m], strict=True)),
        }

    def by_domain(self) -> dict[str, dict[str, float]]:
        """Mean fusion weight of every candidate on every domain. Starts afresh."""
        means = {
            domain: (sums / sums[-1].clamp(min=1)).tolist()[: len(self._candidates)]
            for domain, sums in sorted(self._domains.items())
        }
        self._domains = {}
        return {domain: dict(zip(self._candidates, row, strict=True)) for domain, row in means.items()}

    def save(self) -> dict[str, Any]:
        return {"step": self._step.tolist(), "domains": {name: sums.tolist() for name, sums in self._domains.items()}}

    def load(self, saved: dict[str, Any]) -> None:
        if saved:
            self._step = torch.tensor(saved["step"], dtype=torch.float64)
            self._domains = {name: torch.tensor(sums, dtype=torch.float64) for name, sums in saved["domains"].items()}


def _zeros(candidates: int) -> Tensor:
    return torch.zeros(2 * candidates + 1, dtype=torch.float64)
