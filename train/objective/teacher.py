"""The teacher of every position: what the candidates say, which of them are chosen, and the fused distribution P_f.

Nothing here looks at the target's logits, so a step's selections can all be made, and their sums taken over every
micro-batch and device, before the target runs. N counts positions that have a next token, M candidates, k stored
entries. All functions are pure, but for the randomness that a selection metric asks for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fusionx.train.config import MethodConfig, SelectionConfig, Tail
from fusionx.train.objective.selection_network import (
    SelectionNetwork,
    candidate_features,
    choose,
    gate,
    normalised,
    one_hot,
    pool_by_chunk,
)

_TINY = 1e-9
_BYTES_PER_TOKEN = 4.0
"""Brings a NLL per byte to the scale of one per token, on which AvgCE's softmax is defined."""


class Candidates(NamedTuple):
    """What the candidates say at N positions.

    ids: int32 [N, M, k], -1 fills up. probs: float32 [N, M, k], descending. label_probs: float32 [N, M], the exact
    probability of the next token, NaN where it is not known. aligned: bool [N, M].
    labels: int64 [N]. shares: float32 [N, M], who is to be trusted there by the chunk's text before it, 1 in sum
    (`contract.shards.fixed_share`). nll_per_byte: float32 [chunks, M], NaN where unknown. chunk_of: int64 [N], each
    position's chunk.

    A position that only fills up a batch is aligned with nobody, and belongs to a chunk that only fills up.
    """

    ids: Tensor
    probs: Tensor
    label_probs: Tensor
    aligned: Tensor
    labels: Tensor
    shares: Tensor
    nll_per_byte: Tensor
    chunk_of: Tensor


class Teacher(NamedTuple):
    """P_f = sum_c weights_c probs_c at N positions, on stored supports only.

    ids: int32 [N, C, S], -1 fills up. probs: [N, C, S]. weights: [N, C]. tail: what stands for the mass that `probs`
    does not hold. C is M where a candidate has one weight per position; else 1, and S runs over the union of supports.
    """

    ids: Tensor
    probs: Tensor
    weights: Tensor
    tail: Tail


class Selection(NamedTuple):
    """One micro-batch's teacher, and what the losses on the selection network need.

    taught: bool [N], positions with a teacher, what L_fuse's mean divides by.
    importances: [M], eq. 9's sums. variation: sum over `places` of the weights' CV^2 (`feed_over: place`; else 0).
    text_nll: nats, -log sum_j p_j P_j(next token) summed over `scored` positions. weights [N, M] and entropy [N] (nats,
    of the gate) are for the log, detached.
    """

    teacher: Teacher
    taught: Tensor
    importances: Tensor
    variation: Tensor
    places: Tensor
    text_nll: Tensor
    scored: Tensor
    weights: Tensor
    entropy: Tensor


def select(method: MethodConfig, asn: SelectionNetwork | None, candidates: Candidates, vocab_size: int) -> Selection:
    """Asks the method's selector (the network, or a rule without one) and fuses what it chose."""
    if asn is None:
        return _by_rule(method, candidates)
    if method.selection.granularity == "element":
        return _by_element(method, asn, candidates, vocab_size)
    return _by_position(method, asn, candidates, vocab_size)


def _by_rule(method: MethodConfig, candidates: Candidates) -> Selection:
    w = _RULES[method.teacher](candidates)
    nothing = w.new_zeros(())
    teacher = Teacher(candidates.ids, candidates.probs, w, method.tail)
    return Selection(teacher, _taught(w), w.sum(0), nothing, nothing, nothing, nothing, w, torch.zeros_like(w[:, 0]))


def _by_position(method: MethodConfig, asn: SelectionNetwork, candidates: Candidates, vocab_size: int) -> Selection:
    config = method.selection
    p = gate(selection_logits(asn, candidates), candidates.aligned)
    mask = choose(p, config)
    w = normalised(p, mask)
    text_nll, scored = w.new_zeros(()), w.new_zeros(())
    if method.lambda_select:
        anywhere = candidates.aligned.any(-1)
        mixture = (p * label_probability(candidates, vocab_size)).sum(-1)
        text_nll, scored = -((mixture + _TINY).log() * anywhere).sum(), anywhere.sum()
    if config.fusion == "maximum":
        teacher = _maximum(candidates, mask, method.tail)
    else:
        # With a selector loss the gate learns from the gold text; L_fuse would only teach it to agree with the target.
        used = _weights(config, w.detach() if method.lambda_select else w, mask)
        teacher = Teacher(candidates.ids, candidates.probs, used, method.tail)
    importances, variation, places = _feed(config, p, w, mask)
    return Selection(
        teacher,
        mask.any(-1),
        importances.sum(0),
        variation.sum(),
        places.sum(),
        text_nll,
        scored,
        w.detach(),
        entropy(p),
    )


def _by_element(method: MethodConfig, asn: SelectionNetwork, candidates: Candidates, vocab_size: int) -> Selection:
    """Algorithm 1, evaluated on the union of supports and once per position for the all-zero rows.

    The rows of all vocabulary ids that no candidate stores are equal: their share of the importances is one such row
    times their number. This equals the dense computation (a random metric draws once for them).
    """
    config = method.selection
    n, m = candidates.aligned.shape
    probs = candidates.probs
    if method.tail == "renormalise":
        probs = probs / probs.sum(-1, keepdim=True).clamp(min=_TINY)
    union = union_of_supports(candidates._replace(probs=probs))
    p = gate(asn(union.rows[..., None]), candidates.aligned[union.position])
    mask = choose(p, config)
    w = normalised(p, mask)
    if config.fusion == "maximum":
        fused = (union.rows * mask).amax(-1)
    else:
        fused = (_weights(config, w, mask) * union.rows).sum(-1)
    slots = union.ids.shape[1]
    at = union.position * slots + union.slot
    spread = fused.new_zeros(n * slots).index_put((at,), fused).reshape(n, 1, slots)
    teacher = Teacher(union.ids[:, None], spread, candidates.aligned.any(-1, keepdim=True).to(fused.dtype), "raw")

    p_zero = gate(asn(probs.new_zeros(n, m, 1)), candidates.aligned)
    mask_zero = choose(p_zero, config)
    w_zero = normalised(p_zero, mask_zero)
    stored = torch.bincount(union.position, minlength=n)
    empty = (vocab_size - stored).to(w.dtype)
    importances, variation, places = (
        on_union.sum(0) + (on_empty * empty.reshape(-1, *[1] * (on_empty.dim() - 1))).sum(0)
        for on_union, on_empty in zip(_feed(config, p, w, mask), _feed(config, p_zero, w_zero, mask_zero), strict=True)
    )
    here = stored.clamp(min=1)
    weights = w.detach().new_zeros(n, m).index_add(0, union.position, w.detach()) / here[:, None]
    entropies = weights.new_zeros(n).index_add(0, union.position, entropy(p)) / here
    nothing = w.new_zeros(())
    return Selection(teacher, stored > 0, importances, variation, places, nothing, nothing, weights, entropies)


def selection_logits(asn: SelectionNetwork, candidates: Candidates) -> Tensor:
    """Selection logits [N, M] of the `token` or `sequence` granularity."""
    chunk_of = candidates.chunk_of
    nll_per_byte = candidates.nll_per_byte[chunk_of]
    features = candidate_features(asn.config.features, candidates.probs, candidates.aligned, nll_per_byte)
    if asn.config.granularity == "token":
        return asn(features)
    return asn(pool_by_chunk(features, chunk_of, len(candidates.nll_per_byte)))[chunk_of]


def _weights(config: SelectionConfig, w: Tensor, mask: Tensor) -> Tensor:
    """What the chosen candidates' distributions are multiplied with. Only `weighted` carries a gradient."""
    if config.fusion == "weighted":
        return w
    if config.fusion == "average":
        return mask / mask.sum(-1, keepdim=True).clamp(min=1).to(w.dtype)
    return mask.to(w.dtype)


def _feed(config: SelectionConfig, p: Tensor, w: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per place: importances [..., M], CV^2 of the chosen weights [...] and whether it counts [...] (eq. 9)."""
    importances = p if config.feed_over == "gate" else w
    chosen = mask.sum(-1)
    if config.feed_over != "place":
        return importances, torch.zeros_like(p[..., 0]), torch.zeros_like(p[..., 0])
    count = chosen.clamp(min=1).to(w.dtype)
    mean = w.sum(-1) / count
    variance = ((w - mean[..., None]).square() * mask).sum(-1) / count
    return importances, variance / (mean.square() + _TINY), (chosen > 0).to(w.dtype)


def _taught(w: Tensor) -> Tensor:
    return (w > 0).any(-1)


def _maximum(candidates: Candidates, mask: Tensor, tail: Tail) -> Teacher:
    """The largest probability that a chosen candidate gives each id (max pooling)."""
    probs = candidates.probs
    if tail == "renormalise":
        probs = probs / probs.sum(-1, keepdim=True).clamp(min=_TINY)
    union = union_of_supports(candidates._replace(probs=probs, aligned=candidates.aligned & mask))
    n, slots = union.ids.shape
    spread = probs.new_zeros(n * slots)
    spread[union.position * slots + union.slot] = union.rows.amax(-1)
    spread = spread.reshape(n, 1, slots)
    # A distribution has no more than 1 in all; what is missing to 1 stays the tail.
    spread = spread / spread.sum(-1, keepdim=True).clamp(min=1)
    return Teacher(union.ids[:, None], spread, mask.any(-1, keepdim=True).to(probs.dtype), tail)


class SupportUnion(NamedTuple):
    """The union of the candidates' supports: U (position, vocabulary id) places.

    ids: int32 [N, M k], every id of a position once, -1 elsewhere. position, slot: int64 [U], where in `ids` a place
    stands. rows: float32 [U, M], every candidate's probability of that id.
    """

    ids: Tensor
    position: Tensor
    slot: Tensor
    rows: Tensor


def union_of_supports(candidates: Candidates) -> SupportUnion:
    """Merges the stored ids of the aligned candidates: each position's ids sorted, equal neighbours joined."""
    n, m, k = candidates.ids.shape
    ids = candidates.ids.masked_fill(~candidates.aligned[..., None], -1).reshape(n, m * k)
    probs = (candidates.probs * candidates.aligned[..., None]).reshape(n, m * k)
    ids, order = ids.sort(dim=1, stable=True)
    first = torch.cat([ids[:, :1] >= 0, (ids[:, 1:] != ids[:, :-1]) & (ids[:, 1:] >= 0)], 1)
    place = first.flatten().cumsum(0) - 1  # of every slot in the flat list; padding (-1) sorts to the front
    stored = (ids >= 0).flatten()
    position, slot = first.nonzero(as_tuple=True)
    rows = probs.new_zeros(len(position), m)
    at = place[stored] * m + (order // k).flatten()[stored]
    rows.view(-1).index_add_(0, at, probs.gather(1, order).flatten()[stored])
    return SupportUnion(ids.masked_fill(~first, -1), position, slot, rows)


def label_probability(candidates: Candidates, vocab_size: int) -> Tensor:
    """P_j(next token) under every candidate, [N, M]; where it is not known, an even share of the tail."""
    stored = (candidates.probs > 0).sum(-1)
    tail = (1 - candidates.probs.sum(-1)).clamp(min=0) / (vocab_size - stored).clamp(min=1)
    return torch.where(candidates.label_probs.isnan(), tail, candidates.label_probs)


def min_ce_weights(candidates: Candidates) -> Tensor:
    """FuseLLM's MinCE, [N, M]: all weight on the chunk's candidate with the lowest NLL per byte, where aligned."""
    best = candidates.nll_per_byte.nan_to_num(nan=float("inf")).argmin(-1)[candidates.chunk_of]
    return (one_hot(best, candidates.aligned.shape[-1]) & candidates.aligned).to(candidates.probs.dtype)


def avg_ce_weights(candidates: Candidates) -> Tensor:
    """FuseLLM's AvgCE, [N, M]: softmax of the chunk's negative NLLs over the candidates that are aligned."""
    scores = -_BYTES_PER_TOKEN * candidates.nll_per_byte.nan_to_num(nan=float("inf"))
    scores = scores[candidates.chunk_of].to(candidates.probs.dtype)
    return gate(scores, candidates.aligned & scores.isfinite())


def fixed_share_weights(candidates: Candidates) -> Tensor:
    """Fixed share, [N, M]: the candidates that are aligned, weighed by how they foretold the chunk's text so far."""
    w = candidates.shares * candidates.aligned
    return w / w.sum(-1, keepdim=True).clamp(min=_TINY)


_RULES = {"min_ce": min_ce_weights, "avg_ce": avg_ce_weights, "fixed_share": fixed_share_weights}


def entropy(p: Tensor) -> Tensor:
    """Of the gate at every place, nats, detached."""
    return -torch.special.xlogy(p.detach(), p.detach()).sum(-1)
