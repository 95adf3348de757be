"""Approximate likelihood matching: L_fuse on how likely both models find the same text, not on their distributions.

Minixhofer, Vulić, Ponti 2025, "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching". Needs no
map between the vocabularies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SUREST, _LEAST_SURE = 1e-6, 65504.0
"""Nats that a span's NLL is held between: fp32 logits tell no less from 0, and fp16 holds no more."""


class SpanTeacher(NamedTuple):
    """What the candidates say of S spans (`train.objective.spans`) over N positions.

    starts, stops: int64 [S]. nll: float32 [S], nats. weights: [S], no gradient. temperature: of both likelihoods.
    """

    starts: Tensor
    stops: Tensor
    nll: Tensor
    weights: Tensor
    temperature: float


def binary_divergence(teacher_nll: Tensor, target_nll: Tensor, temperature: float) -> Tensor:
    """KL of the two outcomes of a text, "this one" and "another", under tempered likelihoods; nats, 0 where equal.

    P log(P / Q) + (1 - P) log((1 - P) / (1 - Q)) with P = p^(1/temperature), Q = q^(1/temperature) (Minixhofer et al.,
    section 3). A high temperature keeps long texts, of likelihood near 0, apart.

    Args:
        teacher_nll, target_nll: -log p and -log q, nats.
    """
    (log_p, log_not_p), (log_q, log_not_q) = (_tempered(nll, temperature) for nll in (teacher_nll, target_nll))
    return log_p.exp() * (log_p - log_q) + log_not_p.exp() * (log_not_p - log_not_q)


def span_loss(teacher: SpanTeacher, label_nll: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of the spans' divergences, float64, and its derivative by each of `label_nll` [N], as that is.

    The second is what the head needs: the divergence of a span is no sum over its positions, but its gradient is.
    """
    with torch.enable_grad():
        own = label_nll.detach().double().requires_grad_()
        so_far = torch.nn.functional.pad(own.cumsum(0), (1, 0))
        target_nll = so_far.index_select(0, teacher.stops) - so_far.index_select(0, teacher.starts)
        divergence = binary_divergence(teacher.nll.double(), target_nll, teacher.temperature)
        total = (teacher.weights.double() * divergence).sum()
    (slopes,) = torch.autograd.grad(total, own)
    return total.detach(), slopes.to(label_nll.dtype)


def _tempered(nll: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log P and log(1 - P)."""
    log_p = -nll.clamp(_SUREST, _LEAST_SURE) / temperature
    return log_p, (-torch.expm1(log_p)).log()
