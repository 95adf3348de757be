"""The objective of one batch: L_lm + lambda_fuse L_fuse + lambda_feed L_feed + lambda_select L_select (eq. 10)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from train.asn import SelectionNetwork, candidate_features, gate, pool_by_chunk, select
from train.config import MethodConfig
from train.losses import (
    Candidates,
    HeadOutput,
    fuse_elements,
    label_probability,
    selector_loss,
    source_cross_entropy,
    squared_variation,
)


class Objective(NamedTuple):
    """total: the scalar to minimise. lm, fuse, feed, select: its terms, unweighted, detached.

    weights: [N, M] fusion weights for the log (detached), or None for `ct`.
    """

    total: Tensor
    lm: Tensor
    fuse: Tensor
    feed: Tensor
    select: Tensor
    weights: Tensor | None


class Fusion(NamedTuple):
    """cross_entropy: [N] of the target against P_f, 0 where nothing is aligned. importances: [M]."""

    cross_entropy: Tensor
    importances: Tensor
    select: Tensor
    weights: Tensor


def objective(
    method: MethodConfig,
    asn: SelectionNetwork | None,
    candidates: Candidates | None,
    head: HeadOutput,
    vocab_size: int,
) -> Objective:
    """Losses of one batch. Every mean is over the batch's own positions, L_fuse's over those with a teacher."""
    lm = head.label_nll.sum() / max(1, len(head.label_nll))  # chunks of one token predict nothing
    nothing = lm.new_zeros(())
    if candidates is None:
        return Objective(method.lambda_lm * lm, lm.detach(), nothing, nothing, nothing, None)
    fusion = _fuse(method, asn, candidates, head.support_logq, vocab_size)
    fused = (fusion.weights > 0).any(-1)  # with MinCE fewer than the aligned: only where the chosen candidate is
    fuse = (fusion.cross_entropy * fused).sum() / fused.sum().clamp(min=1)
    feed = squared_variation(fusion.importances) if asn is not None else nothing
    total = (
        method.lambda_lm * lm
        + method.lambda_fuse * fuse
        + method.lambda_feed * feed
        + method.lambda_select * fusion.select
    )
    return Objective(total, lm.detach(), fuse.detach(), feed.detach(), fusion.select.detach(), fusion.weights)


def _fuse(
    method: MethodConfig, asn: SelectionNetwork | None, candidates: Candidates, logq: Tensor, vocab_size: int
) -> Fusion:
    if asn is not None and asn.granularity == "element":
        elements = fuse_elements(asn, candidates, logq, method.tau, vocab_size)
        return Fusion(elements.cross_entropy, elements.importances, logq.new_zeros(()), elements.weights)
    chosen = logq.new_zeros(())
    if asn is None:
        w = min_ce_weights(candidates)
    else:
        p = gate(selection_logits(asn, candidates), candidates.aligned)
        w, _ = select(p, method.tau)
        if method.lambda_select:
            label_probs = label_probability(candidates, vocab_size)
            chosen = selector_loss(p, label_probs, candidates.aligned.any(-1))
    # With a selector loss the gate learns from the gold text; L_fuse would only teach it to agree with the target.
    w_fuse = w.detach() if method.lambda_select else w
    cross_entropy = (w_fuse * source_cross_entropy(candidates.probs, logq, method.tail)).sum(-1)
    return Fusion(cross_entropy, w.sum(0), chosen, w.detach())


def selection_logits(asn: SelectionNetwork, candidates: Candidates) -> Tensor:
    """Selection logits [N, M] of the `token` or `sequence` granularity."""
    chunk_of = candidates.chunk_of
    features = candidate_features(candidates.probs, candidates.aligned, candidates.nll_per_byte[chunk_of])
    if asn.granularity == "token":
        return asn(features)
    return asn(pool_by_chunk(features, chunk_of, len(candidates.nll_per_byte)))[chunk_of]


def min_ce_weights(candidates: Candidates) -> Tensor:
    """FuseLLM's MinCE, [N, M]: all weight on the chunk's candidate with the lowest NLL per byte, where aligned."""
    best = candidates.nll_per_byte.nan_to_num(nan=float("inf")).argmin(-1)[candidates.chunk_of]
    one_hot = torch.nn.functional.one_hot(best, candidates.aligned.shape[-1])
    return (one_hot * candidates.aligned).to(candidates.probs.dtype)
