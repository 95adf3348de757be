"""Running means of what the teacher's selector does: per candidate since the last log line, per domain since the last
validation.

Every process adds up its own positions in `sums`; `take` moves what all of them come to into the two windows, which
therefore are the same however a step is divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class SelectionLog:
    """Sums over positions where at least one candidate is aligned.

    sums: float64 [domains, 2 M + 2], this process's since the last `take`: of each candidate's fusion weight, of how
    often it was chosen, of the gate's entropy, and the positions. It and the windows stay on the device of what was
    added, and nothing waits for them before they are read.
    """

    def __init__(self, candidates: Sequence[str], domains: Sequence[str]) -> None:
        self._candidates = list(candidates)
        self._domains = list(domains)
        self.sums = self._zeros()
        self._since_step = self._zeros()
        self._since_validation = self._zeros()
        self._before_validation = self._zeros()

    def add(self, weights: Tensor, entropy: Tensor, anywhere: Tensor, chunk_of: Tensor, domains: Tensor) -> None:
        """One micro-batch, all detached.

        Args:
            weights: [N, M], fusion weights, 0 where a candidate is not chosen. entropy: [N], nats, the gate's.
            anywhere: bool [N]. chunk_of: int64 [N], each position's chunk. domains: int64 [chunks].
        """
        columns = [weights, weights > 0, entropy[:, None], torch.ones_like(entropy[:, None])]
        rows = torch.cat([column.double() for column in columns], -1).masked_fill(~anywhere[:, None], 0.0)
        every = torch.arange(len(self._domains), device=weights.device)
        # A product sums in a fixed order on a GPU, too, which scattered additions do not.
        member = (every[:, None] == domains[chunk_of]).double()
        self.sums = self.sums.to(weights.device) + member @ rows

    def take(self, sums: Tensor) -> None:
        """Starts `sums` afresh; the argument is what they came to over all processes."""
        self._since_step = self._since_step.to(sums.device) + sums
        self._since_validation = self._since_validation.to(sums.device) + sums
        self.sums = torch.zeros_like(self.sums)

    @property
    def empty(self) -> bool:
        """Whether nothing was taken since the last validation."""
        return not self._since_validation[:, -1].any()

    def since_last_step(self) -> dict[str, Any]:
        """Means over positions. Starts afresh.

        weight: candidate -> fusion weight. selected: candidate -> share of positions where it was chosen.
        gate_entropy: nats; 0 where one candidate has it all, log M where the gate cannot tell them apart.
        """
        sums = self._since_step.sum(0)
        means = (sums / sums[-1].clamp(min=1)).tolist()
        self._since_step = self._zeros()
        m = len(self._candidates)
        return {
            "weight": dict(zip(self._candidates, means[:m], strict=True)),
            "selected": dict(zip(self._candidates, means[m : 2 * m], strict=True)),
            "gate_entropy": means[2 * m],
        }

    def lately(self) -> dict[str, float]:
        """Mean fusion weight of every candidate since the last validation; empty where nothing was ever selected.

        An export right after a validation is told of what came before that.
        """
        sums = (self._before_validation if self.empty else self._since_validation).sum(0)
        if not sums[-1]:
            return {}
        return dict(zip(self._candidates, (sums / sums[-1]).tolist(), strict=False))

    def by_domain(self) -> dict[str, dict[str, dict[str, float]]]:
        """Means over each domain's positions, of the domains that had one: domain -> candidate -> mean. Starts afresh.

        domains: fusion weight. selected: share of positions where the candidate was chosen.
        """
        m = len(self._candidates)
        found: dict[str, dict[str, dict[str, float]]] = {"domains": {}, "selected": {}}
        for domain, sums in sorted(zip(self._domains, self._since_validation, strict=True), key=lambda item: item[0]):
            if sums[-1] > 0:
                means = (sums / sums[-1]).tolist()
                found["domains"][domain] = dict(zip(self._candidates, means[:m], strict=True))
                found["selected"][domain] = dict(zip(self._candidates, means[m : 2 * m], strict=True))
        self._before_validation, self._since_validation = self._since_validation, self._zeros()
        return found

    def save(self) -> dict[str, Any]:
        """The windows as plain values; what was not taken is not in them."""
        return {
            "step": self._since_step.tolist(),
            "validation": self._since_validation.tolist(),
            "before": self._before_validation.tolist(),
        }

    def load(self, saved: dict[str, Any]) -> None:
        if saved:
            self._since_step = torch.tensor(saved["step"], dtype=torch.float64)
            self._since_validation = torch.tensor(saved["validation"], dtype=torch.float64)
            self._before_validation = torch.tensor(saved["before"], dtype=torch.float64)

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self._domains), 2 * len(self._candidates) + 2, dtype=torch.float64)
