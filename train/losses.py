"""The losses (paper, eq. 8-10) from stored top-k supports: no dense P_f and no (B, L, V) logits ever exist.

N counts positions that have a next token, M candidates, k stored entries. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from train.asn import SelectionNetwork, gate, select

_TINY = 1e-9


class Candidates(NamedTuple):
    """What the candidates say at N positions.

    ids: int64 [N, M, k], -1 fills up. probs: float32 [N, M, k], descending. aligned: bool [N, M].
    labels: int64 [N]. nll_per_byte: float32 [chunks, M], NaN where unknown. chunk_of: int64 [N], each position's chunk.
    """

    ids: Tensor
    probs: Tensor
    aligned: Tensor
    labels: Tensor
    nll_per_byte: Tensor
    chunk_of: Tensor


class HeadOutput(NamedTuple):
    """label_nll: float32 [N], nats. support_logq: float32 [N, M, k], the target's log q at every stored id."""

    label_nll: Tensor
    support_logq: Tensor


def run_head(
    head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, ids: Tensor | None, block: int
) -> HeadOutput:
    """One shared logsumexp for both losses, `block` positions at a time, recomputed in backward.

    Args:
        head: hidden states [n, d] -> logits [n, V].
        hidden: [N, d]. labels: int64 [N]. ids: int64 [N, M, k] with -1 for empty entries, or None.
    """
    n = hidden.shape[0]
    if ids is None:
        ids = labels.new_zeros((n, 0, 0))
    flat = ids.flatten(1).clamp(min=0)
    pieces = [
        checkpoint(_head_block, head, hidden[at], labels[at], flat[at], use_reentrant=False)
        for at in (slice(start, start + block) for start in range(0, max(n, 1), block))  # n may be 0
    ]
    label_nll, logq = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return HeadOutput(label_nll, logq.reshape(ids.shape))


def _head_block(head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    logits = head(hidden)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    logsumexp = torch.logsumexp(logits, -1, keepdim=True)
    return (logsumexp - logits.gather(1, labels[:, None]))[:, 0], logits.gather(1, ids) - logsumexp


def source_cross_entropy(probs: Tensor, logq: Tensor, tail: str) -> Tensor:
    """Cross-entropy of the target against each candidate's stored distribution, [N, M], nats.

    `bucket`: everything outside the stored ids is one symbol, -sum P log q - P_tail log(1 - sum q): the exact
    cross-entropy of the coarse-grained distributions. `renormalise`: the stored probabilities are scaled to sum 1.
    Since P_f = sum_j w_j P_j (eq. 8), L_fuse is the w-weighted sum of these.
    """
    stored = probs.sum(-1)
    inside = -(probs * logq).sum(-1)
    if tail == "renormalise":
        return inside / stored.clamp(min=_TINY)
    outside_q = (1 - (logq.exp() * (probs > 0)).sum(-1)).clamp(min=_TINY)
    return inside - (1 - stored).clamp(min=0) * outside_q.log()


def label_probability(candidates: Candidates, vocab_size: int) -> Tensor:
    """P_j(next token) under every candidate, [N, M]; a label outside the support gets an even share of the tail."""
    hit = (candidates.ids == candidates.labels[:, None, None]) & (candidates.probs > 0)
    inside = (candidates.probs * hit).sum(-1)
    stored = (candidates.probs > 0).sum(-1)
    tail = (1 - candidates.probs.sum(-1)).clamp(min=0) / (vocab_size - stored).clamp(min=1)
    return torch.where(hit.any(-1), inside, tail)


def squared_variation(importances: Tensor, eps: float = 1e-9) -> Tensor:
    """CV^2 = Var / (Mean^2 + eps) of the M importances (eq. 9); population variance."""
    return importances.var(correction=0) / (importances.mean() ** 2 + eps)


def selector_loss(p: Tensor, label_probs: Tensor, anywhere: Tensor) -> Tensor:
    """-log sum_j p_j P_j(x_{l+1}) over the soft gate (before tau), mean over positions with a candidate; nats."""
    mixture = (p * label_probs).sum(-1)[anywhere]
    return -(mixture + _TINY).log().sum() / max(1, len(mixture))


class ElementFusion(NamedTuple):
    """Fusion per (position, vocabulary id) on the union of supports.

    cross_entropy: [N], nats. importances: [M], summed over all N x V places. weights: [N, M], the weights' mean over
    the position's union, for the log only.
    """

    cross_entropy: Tensor
    importances: Tensor
    weights: Tensor


class Union(NamedTuple):
    """The union of the candidates' supports, as a flat list of U (position, vocabulary id) places.

    position: int64 [U]. rows: float32 [U, M], every candidate's probability of that id. logq: [U], the target's.
    """

    position: Tensor
    rows: Tensor
    logq: Tensor


def union_of_supports(candidates: Candidates, logq: Tensor) -> Union:
    """Merges the stored ids of the aligned candidates: each position's ids sorted, equal neighbours joined."""
    n, m, k = candidates.ids.shape
    ids = candidates.ids.masked_fill(~candidates.aligned[..., None], -1).reshape(n, m * k)
    probs = (candidates.probs * candidates.aligned[..., None]).reshape(n, m * k)
    ids, order = ids.sort(dim=1, stable=True)
    first = torch.cat([ids[:, :1] >= 0, (ids[:, 1:] != ids[:, :-1]) & (ids[:, 1:] >= 0)], 1)
    place = first.flatten().cumsum(0) - 1  # of every slot in the flat list; padding (-1) sorts to the front
    stored = (ids >= 0).flatten()
    rows = probs.new_zeros(int(first.sum()), m)
    slot = place[stored] * m + (order // k).flatten()[stored]
    rows.view(-1).index_add_(0, slot, probs.gather(1, order).flatten()[stored])
    position = first.nonzero()[:, 0]
    return Union(position, rows, logq.reshape(n, m * k).gather(1, order)[first])


def fuse_elements(
    asn: SelectionNetwork, candidates: Candidates, logq: Tensor, tau: float, vocab_size: int
) -> ElementFusion:
    """The `element` granularity of Algorithm 1, evaluated on the union of supports and once for the zero row.

    The all-zero rows (every vocabulary id that no candidate stores) all get the weights of one zero row, so their
    share of the importances is that row times their number: this equals the dense computation. Probabilities are
    renormalised over what is stored (tail policy of the paper).
    """
    n, m, _ = candidates.ids.shape
    scaled = candidates.probs / candidates.probs.sum(-1, keepdim=True).clamp(min=_TINY)
    union = union_of_supports(candidates._replace(probs=scaled), logq)
    w, _ = select(gate(asn(union.rows), candidates.aligned[union.position]), tau)
    fused = (w * union.rows).sum(-1)
    cross_entropy = -logq.new_zeros(n).index_add(0, union.position, fused * union.logq)

    zero = asn(candidates.probs.new_zeros(1, m))
    w_zero, _ = select(gate(zero.expand(n, m), candidates.aligned), tau)
    stored = torch.bincount(union.position, minlength=n)
    importances = w.sum(0) + ((vocab_size - stored).to(w.dtype)[:, None] * w_zero).sum(0)
    weights = w.detach().new_zeros(n, m).index_add(0, union.position, w.detach()) / stored.clamp(min=1)[:, None]
    return ElementFusion(cross_entropy, importances, weights)
