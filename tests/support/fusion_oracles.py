"""The losses once more, slow and obvious: dense distributions over the whole vocabulary, one place at a time, float64.

Nothing of `train.objective.teacher`, `train.objective.fused_head` or `train.objective.losses` is used here; only
autograd and the selection network's own layers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusionx.train.config import Feature, MethodConfig, SelectionConfig
from fusionx.train.objective.selection_network import FEATURE_WIDTHS, SelectionNetwork
from fusionx.train.objective.teacher import Candidates

EPS = 1e-9


class DenseLosses(NamedTuple):
    """Terms of one batch with their graphs, and the fusion weights [N, M] (`token`, `sequence`, MinCE)."""

    total: Tensor
    lm: Tensor
    fuse: Tensor
    feed: Tensor
    select: Tensor
    importances: list[Tensor]


def random_candidates(
    seed: int,
    n: int = 6,
    m: int = 3,
    k: int = 4,
    vocab: int = 14,
    chunks: int = 2,
    garbage_where_unaligned: bool = False,
) -> Candidates:
    """Random supports that overlap, with padding, unaligned candidates and (at position 0) nobody aligned.

    Of a label that k cut off, the probability is sometimes known.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    ids = torch.stack(
        [torch.stack([torch.randperm(vocab, generator=generator)[:k] for _ in range(m)]) for _ in range(n)]
    )
    mass = uniform(n, m, k) + 0.05
    stored = torch.randint(1, k + 1, (n, m), generator=generator)
    padding = torch.arange(k) >= stored[..., None]
    mass[padding] = 0
    probs = mass / mass.sum(-1, keepdim=True) * (0.4 + 0.59 * uniform(n, m))[..., None]
    probs, order = probs.sort(-1, descending=True)
    ids = ids.gather(-1, order).masked_fill(probs == 0, -1)
    aligned = uniform(n, m) < 0.7
    aligned[0] = False
    aligned[1:2, 0] = True
    if not garbage_where_unaligned:
        probs = probs * aligned[..., None]
        ids = ids.masked_fill(~aligned[..., None], -1)
    labels = torch.randint(0, vocab, (n,), generator=generator)
    labels[-1] = ids[-1].max().clamp(min=0)  # a label that somebody stores, unless nobody is aligned there
    chunk_of = (torch.arange(n) * chunks) // n
    nll_per_byte = 0.5 + uniform(chunks, m)
    label_probs = label_probs_of(ids, probs, labels)
    was_cut_off = label_probs.isnan() & (uniform(n, m) < 0.5) & (aligned | garbage_where_unaligned)
    label_probs = torch.where(was_cut_off, (1 - probs.sum(-1)) * uniform(n, m), label_probs)
    shares = torch.softmax(2 * uniform(n, m), -1)
    return Candidates(ids, probs, label_probs, aligned, labels, shares, nll_per_byte, chunk_of)


def label_probs_of(ids: Tensor, probs: Tensor, labels: Tensor) -> Tensor:
    """The labels' probabilities [N, M] as far as the entries say them, NaN where they do not."""
    is_label = (ids == labels[:, None, None]) & (probs > 0)
    return (probs * is_label).sum(-1).masked_fill(~is_label.any(-1), float("nan"))


def dense_distribution(candidates: Candidates, position: int, candidate: int, vocab: int) -> Tensor:
    """P_j over the vocabulary as stored, [V]; all zero where the candidate is not aligned."""
    dense = torch.zeros(vocab, dtype=torch.float64)
    if candidates.aligned[position, candidate]:
        for token, prob in zip(
            candidates.ids[position, candidate].tolist(), candidates.probs[position, candidate].tolist(), strict=True
        ):
            if token >= 0:
                dense[token] += prob
    return dense


def gate_at(logits: Tensor, available: list[bool]) -> list[Tensor]:
    """Eq. 5's softmax over the candidates that are available, one place."""
    exponentials = [
        logit.exp() if there else logit.new_zeros(()) for logit, there in zip(logits, available, strict=True)
    ]
    total = sum(exponentials, logits.new_zeros(()))
    return [value / total if there else value for value, there in zip(exponentials, available, strict=True)]


def choose_at(p: list[Tensor], config: SelectionConfig) -> list[bool]:
    """Eq. 5 and 6 at one place, or what the config says instead."""
    values = [float(value.detach()) for value in p]
    if max(values) == 0:
        return [False for _ in p]
    if config.choice == "all":
        return [value > 0 for value in values]
    if config.choice == "top_n":
        best = sorted(range(len(values)), key=lambda j: -values[j])[: config.n]
        return [j in best and values[j] > 0 for j in range(len(values))]
    chosen = [value > config.tau for value in values]
    if not any(chosen):
        chosen[values.index(max(values))] = True
    return chosen


def weights_at(p: list[Tensor], chosen: list[bool]) -> list[Tensor]:
    """Eq. 7 at one place: weights that sum to 1 over the chosen."""
    total = sum((value for value, kept in zip(p, chosen, strict=True) if kept), torch.zeros((), dtype=torch.float64))
    return [value / (total + EPS) if kept else value * 0 for value, kept in zip(p, chosen, strict=True)]


def fuse_at(w: list[Tensor], chosen: list[bool], config: SelectionConfig, stored: list[Tensor]) -> Tensor:
    """P_f of one place (a distribution [V], or a scalar for one vocabulary id)."""
    kept = [j for j, there in enumerate(chosen) if there]
    nothing = torch.zeros_like(stored[0])
    if not kept:
        return nothing
    if config.fusion == "maximum":
        return torch.stack([stored[j] for j in kept]).amax(0)
    if config.fusion == "average":
        return sum((stored[j] for j in kept), nothing) / len(kept)
    if config.fusion == "unweighted":
        return sum((stored[j] for j in kept), nothing)
    return sum((w[j] * stored[j] for j in kept), nothing)


class Feed:
    """Eq. 9, place by place."""

    def __init__(self, config: SelectionConfig, candidates: int) -> None:
        self.config = config
        self.importances = [torch.zeros((), dtype=torch.float64) for _ in range(candidates)]
        self.variations: list[Tensor] = []

    def add(self, p: list[Tensor], w: list[Tensor], chosen: list[bool]) -> None:
        said = p if self.config.feed_over == "gate" else w
        self.importances = [total + value for total, value in zip(self.importances, said, strict=True)]
        kept = [value for value, there in zip(w, chosen, strict=True) if there]
        if kept:
            self.variations.append(squared_variation_of(kept))

    def loss(self) -> Tensor:
        if self.config.feed_over != "place":
            return squared_variation_of(self.importances)
        return torch.stack(self.variations).mean() if self.variations else torch.zeros((), dtype=torch.float64)


def squared_variation_of(values: list[Tensor]) -> Tensor:
    mean = sum(values, torch.zeros((), dtype=torch.float64)) / len(values)
    variance = sum(((value - mean) ** 2 for value in values), torch.zeros((), dtype=torch.float64)) / len(values)
    return variance / (mean**2 + EPS)


def coarse_cross_entropy(stored: Tensor, log_q: Tensor) -> Tensor:
    """Cross-entropy between two distributions after everything outside the support became one symbol."""
    inside = stored > 0
    teacher = torch.cat([stored[inside], (1 - stored.sum())[None]])
    student = torch.cat([log_q[inside].exp(), log_q[~inside].exp().sum()[None]])
    return -(teacher * student.log()).sum()


def feature_rows(candidates: Candidates, wanted: Sequence[Feature]) -> Tensor:
    """[N, M, f] as `candidate_features` documents it, number by number."""
    rows = []
    for position in range(len(candidates.labels)):
        nlls = candidates.nll_per_byte[candidates.chunk_of[position]].tolist()
        row: list[float] = []
        for j in range(candidates.aligned.shape[1]):
            if candidates.aligned[position, j]:
                probs = candidates.probs[position, j].tolist()
                logs = [max(-12.0, math.log(p)) if p > 0 else -12.0 for p in probs]
                tail = max(0.0, 1 - sum(probs))
                symbols = [p for p in [*probs, tail] if p > 0]
                entropy = -sum(p * math.log(p) for p in symbols)
                row += [*(0.25 * log for log in (logs + [-12.0] * 8)[:8]), entropy, tail, 1.0]
            else:
                row += [0.0] * 11
            row.append(4 * (nlls[j] - sum(nlls) / len(nlls)))
        rows.append(row)
    starts = dict(zip(FEATURE_WIDTHS, itertools.accumulate(FEATURE_WIDTHS.values(), initial=0), strict=False))
    columns = [starts[name] + at for name in wanted for at in range(FEATURE_WIDTHS[name])]
    return torch.tensor(rows, dtype=torch.float64).reshape(*candidates.aligned.shape, -1)[..., columns]


def dense_losses(
    method: MethodConfig, asn: SelectionNetwork | None, candidates: Candidates, logits: Tensor
) -> DenseLosses:
    """The whole objective (eq. 10) from the full logits [N, V]."""
    nothing = torch.zeros((), dtype=torch.float64)
    log_q = torch.log_softmax(logits, -1)
    n, m, _ = candidates.ids.shape
    lm = sum((-log_q[position, candidates.labels[position]] for position in range(n)), nothing) / n
    if method.teacher == "none":
        return DenseLosses(method.lambda_lm * lm, lm, nothing, nothing, nothing, [])
    feed = Feed(method.selection, m)
    if asn is not None and method.selection.granularity == "element":
        fuse, chosen = _element_fusion(method, asn, candidates, log_q, feed), nothing
    else:
        fuse, chosen = _position_fusion(method, asn, candidates, log_q, feed)
    fed = feed.loss() if asn is not None else nothing
    total = method.lambda_lm * lm + method.lambda_fuse * fuse + method.lambda_feed * fed + method.lambda_select * chosen
    return DenseLosses(total, lm, fuse, fed, chosen, feed.importances)


def _position_fusion(
    method: MethodConfig, asn: SelectionNetwork | None, candidates: Candidates, log_q: Tensor, feed: Feed
) -> tuple[Tensor, Tensor]:
    n, m, _ = candidates.ids.shape
    vocab = log_q.shape[1]
    config = method.selection
    selection = _selection_logits(asn, candidates) if asn is not None else None
    cross_entropies, selector_terms = [], []
    for position in range(n):
        available = candidates.aligned[position].tolist()
        stored = [dense_distribution(candidates, position, j, vocab) for j in range(m)]
        if selection is None:
            nlls = candidates.nll_per_byte[candidates.chunk_of[position]].tolist()
            p = _rule_at(method, nlls, candidates.shares[position].tolist(), available)
            chosen = [float(value) > 0 for value in p]
            w, rule = p, SelectionConfig()
        else:
            p = gate_at(selection[position], available)
            chosen, rule = choose_at(p, config), config
            w = weights_at(p, chosen)
            if any(available) and method.lambda_select:
                selector_terms.append(-_gold_mixture(p, stored, candidates.label_probs[position].tolist()).log())
        feed.add(p, w, chosen)
        if not any(chosen):
            continue
        used = [value.detach() for value in w] if method.lambda_select else w
        if method.tail == "renormalise":
            stored = [dense / dense.sum() if dense.sum() > 0 else dense for dense in stored]
        if method.tail == "bucket" and rule.fusion != "maximum":
            kept = torch.tensor([float(there) for there in chosen], dtype=torch.float64)
            factors = {"weighted": used, "average": kept / kept.sum(), "unweighted": kept}[rule.fusion]
            terms = [
                v * coarse_cross_entropy(d, log_q[position]) for v, d in zip(factors, stored, strict=True) if v > 0
            ]
            cross_entropies.append(torch.stack(terms).sum())
            continue
        fused = fuse_at(used, chosen, rule, stored)
        if rule.fusion == "maximum":
            fused = fused / max(1.0, float(fused.sum()))
            if method.tail == "renormalise":
                fused = fused / fused.sum()
        if method.tail == "bucket":
            cross_entropies.append(coarse_cross_entropy(fused, log_q[position]))
        else:
            cross_entropies.append(-(fused * log_q[position]).sum())
    fuse = torch.stack(cross_entropies).mean() if cross_entropies else torch.zeros((), dtype=torch.float64)
    select = torch.stack(selector_terms).mean() if selector_terms else torch.zeros((), dtype=torch.float64)
    return fuse, select


def _rule_at(method: MethodConfig, nlls: list[float], shares: list[float], available: list[bool]) -> list[Tensor]:
    """FuseLLM's MinCE and AvgCE, and fixed share, at one place."""
    if method.teacher == "min_ce":
        best = nlls.index(min(nlls))
        return [torch.tensor(float(j == best and there), dtype=torch.float64) for j, there in enumerate(available)]
    trust = shares if method.teacher == "fixed_share" else [math.exp(-4 * nll) for nll in nlls]
    scores = [share if there else 0.0 for share, there in zip(trust, available, strict=True)]
    total = sum(scores) or 1.0
    return [torch.tensor(score / total, dtype=torch.float64) for score in scores]


def _gold_mixture(p: list[Tensor], stored: list[Tensor], label_probs: list[float]) -> Tensor:
    """sum_j p_j P_j(label), the tail of each candidate spread evenly over the ids that it does not store, where the
    label's own probability is not known."""
    total = torch.zeros((), dtype=torch.float64)
    for value, dense, known in zip(p, stored, label_probs, strict=True):
        outside = int((dense == 0).sum())
        total = total + value * ((1 - dense.sum()) / outside if math.isnan(known) else known)
    return total + EPS


def _selection_logits(asn: SelectionNetwork, candidates: Candidates) -> Tensor:
    features = feature_rows(candidates, asn.config.features)
    if asn.config.granularity == "sequence":
        pooled = [features[candidates.chunk_of == chunk].mean(0) for chunk in candidates.chunk_of.tolist()]
        features = torch.stack(pooled)
    return asn(features)


def _element_fusion(
    method: MethodConfig, asn: SelectionNetwork, candidates: Candidates, log_q: Tensor, feed: Feed
) -> Tensor:
    """Algorithm 1 with its full (N, V, M) tensor, all-zero rows and all."""
    n, m, _ = candidates.ids.shape
    vocab = log_q.shape[1]
    dense = torch.zeros(n, vocab, m, dtype=torch.float64)
    for position in range(n):
        for j in range(m):
            stored = dense_distribution(candidates, position, j, vocab)
            renormalise = method.tail == "renormalise" and stored.sum() > 0
            dense[position, :, j] = stored / stored.sum() if renormalise else stored
    logits = asn(dense[..., None])
    cross_entropies = []
    for position in range(n):
        available = candidates.aligned[position].tolist()
        if not any(available):
            continue
        fused = []
        for token in range(vocab):
            p = gate_at(logits[position, token], available)
            chosen = choose_at(p, method.selection)
            w = weights_at(p, chosen)
            feed.add(p, w, chosen)
            fused.append(fuse_at(w, chosen, method.selection, list(dense[position, token])))
        cross_entropies.append(-(torch.stack(fused) * log_q[position]).sum())
    return torch.stack(cross_entropies).mean()
