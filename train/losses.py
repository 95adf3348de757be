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


def fuse_elements(
    asn: SelectionNetwork, candidates: Candidates, logq: Tensor, tau: float, vocab_size: int, block: int = 512
) -> ElementFusion:
    """The `element` granularity of Algorithm 1, evaluated on the union of supports and once for the zero row.

    The all-zero rows (every vocabulary id that no candidate stores) all get the weights of one zero row, so their
    share of the importances is that row times their number: this equals the dense computation. Probabilities are
    renormalised over what is stored (tail policy of the paper).
    """
    zero = asn(candidates.probs.new_zeros(1, asn.candidates))
    parts = [
        _fuse_element_block(asn, zero, candidates, logq, tau, vocab_size, slice(start, start + block))
        for start in range(0, max(1, len(candidates.labels)), block)
    ]
    cross_entropy, importances, weights = zip(*parts, strict=True)
    return ElementFusion(torch.cat(cross_entropy), torch.stack(importances).sum(0), torch.cat(weights))


def _fuse_element_block(
    asn: SelectionNetwork,
    zero: Tensor,
    candidates: Candidates,
    logq: Tensor,
    tau: float,
    vocab_size: int,
    at: slice,
) -> tuple[Tensor, Tensor, Tensor]:
    aligned = candidates.aligned[at]
    ids = candidates.ids[at].masked_fill(~aligned[..., None], -1)
    probs = candidates.probs[at] * aligned[..., None]
    n, m, k = ids.shape
    probs = probs / probs.sum(-1, keepdim=True).clamp(min=_TINY)
    slots = ids.reshape(n, m * k)
    # rows[n, s, j] = P_j at the id of slot s: every slot against every candidate's stored ids.
    same = slots[:, :, None] == slots[:, None, :]
    rows = (same * probs.reshape(n, 1, m * k)).reshape(n, m * k, m, k).sum(-1)
    earlier = torch.ones(m * k, m * k, dtype=torch.bool, device=ids.device).tril(-1)
    union = (slots >= 0) & ~(same & earlier).any(-1)  # each id once: its first slot

    available = aligned[:, None, :].expand(n, m * k, m)
    w, _ = select(gate(asn(rows), available), tau)
    w = w * union[..., None]
    fused = (w * rows).sum(-1)
    cross_entropy = -(fused * logq[at].reshape(n, m * k)).sum(-1)

    w_zero, _ = select(gate(zero.expand(n, m), aligned), tau)
    zeros = (vocab_size - union.sum(-1)).to(w.dtype)
    importances = w.sum((0, 1)) + (zeros[:, None] * w_zero).sum(0)
    weights = w.sum(1) / union.sum(-1, keepdim=True).clamp(min=1)
    return cross_entropy, importances, weights.detach()
