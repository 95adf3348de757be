"""What tests of one small step share: a linear head in float64, a selection network, gradients, closeness."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusionx.train.config import PRESETS, MethodConfig
from fusionx.train.objective.selection_network import SelectionNetwork

VOCAB, WIDTH = 14, 5


def variant(name: str, selection: dict[str, Any] | None = None, **changed: Any) -> MethodConfig:
    """A preset with some of its fields changed."""
    plain = PRESETS[name].model_dump()
    return MethodConfig.model_validate({**plain, **changed, "selection": plain["selection"] | (selection or {})})


def network(method: MethodConfig, candidates: int = 3, seed: int = 0) -> SelectionNetwork | None:
    """A selection network in float64 whose outputs spread enough for tau to matter."""
    if method.teacher != "asn":
        return None
    torch.manual_seed(seed)
    asn = SelectionNetwork(candidates, method.selection).double()
    with torch.no_grad():
        for parameter in asn.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return asn


def linear_head(seed: int, n: int = 6) -> tuple[Tensor, Tensor]:
    """hidden [N, d] and the head's weight [V, d], float64 leaves."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, weight


def sum_of(values: list[Tensor]) -> Tensor:
    return sum(values, torch.zeros((), dtype=torch.float64))


def gradients(total: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
