"""The fused head: L_lm and L_fuse of a batch and their gradients, from blocks of logits that are never kept.

One block of logits at a time becomes, in place, its own gradient: one exponential pass serves both losses, and what
fusion adds is a gather and a scatter at the label and the stored support. No (N, V) tensor and no dense P_f exists, and
nothing is computed twice: when the forward pass ends, the gradients of hidden states, head and teacher are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusionx.train.config import Tail
from fusionx.train.objective.teacher import Teacher

IGNORED = -100
"""The label of a position that only fills up a batch: it has no loss and no gradient (as in Hugging Face's losses)."""

_TINY = 1e-9
_BLOCK, _BLOCK_LOGITS = 1024, 2**28
Head = Callable[[Tensor], Tensor]
"""Hidden states [n, d] -> logits [n, V]."""


class HeadLosses(NamedTuple):
    """lm, fuse: sums over the positions, nats, detached. loss: lm_scale * lm + fuse_scale * fuse, with its graph."""

    loss: Tensor
    lm: Tensor
    fuse: Tensor


def cross_entropy(probs: Tensor, logq: Tensor, tail: Tail) -> Tensor:
    """Cross-entropy of the target against stored distributions, [...], nats; probs and logq are [..., S].

    `bucket`: everything outside the stored ids is one symbol, -sum P log q - P_tail log(1 - sum q): the exact
    cross-entropy of the coarse-grained distributions. `renormalise`: the stored probabilities are scaled to sum 1.
    `raw`: -sum P log q. Since P_f = sum_c w_c P_c (eq. 8), L_fuse is the w-weighted sum of these.
    """
    inside = -(probs * logq).sum(-1)
    if tail == "raw":
        return inside
    stored = probs.sum(-1)
    if tail == "renormalise":
        return inside / stored.clamp(min=_TINY)
    outside_q = (1 - (logq.exp() * (probs > 0)).sum(-1)).clamp(min=_TINY)
    return inside - (1 - stored).clamp(min=0) * outside_q.log()


def fused_head(
    head: Head,
    parameters: Sequence[Tensor],
    hidden: Tensor,
    labels: Tensor,
    teacher: Teacher | None,
    lm_scale: float | Tensor,
    fuse_scale: float | Tensor,
    block: int,
) -> HeadLosses:
    """lm_scale * sum NLL(label) + fuse_scale * sum_c w_c CE(P_c, q), `block` positions at a time (eq. 8, 10).

    The scales (1 / counts, times lambda) enter here because the gradients are made in the forward pass; `backward` may
    run once.

    Args:
        parameters: what `head` reads and is to get a gradient. hidden: [N, d]. labels: int64 [N], `IGNORED` fills up;
        there the teacher's weights have to be 0.
    """
    if teacher is None:
        ids = labels.new_zeros((len(labels), 0, 0))
        teacher = Teacher(ids, ids.float(), ids.float().sum(-1), "raw")
    ids, probs, weights, tail = teacher
    scales = tuple(s if isinstance(s, Tensor) else hidden.new_full((), s) for s in (lm_scale, fuse_scale))
    return HeadLosses(*_FusedHead.apply(head, block, tail, scales, labels, ids, hidden, probs, weights, *parameters))


@torch.no_grad()
def label_nll(head: Head, hidden: Tensor, labels: Tensor, block: int) -> Tensor:
    """-log q(label) at every position, [N], nats, 0 where the label is `IGNORED`; no gradients."""
    pieces = [hidden.new_zeros(0, dtype=torch.float32)]
    for at in _blocks(len(labels), block):
        logits = _full_precision(head(hidden[at]))
        nll = torch.logsumexp(logits, -1) - logits.gather(1, labels[at, None].clamp(min=0))[:, 0]
        pieces.append(nll * (labels[at] >= 0))
    return torch.cat(pieces)


def head_block(vocab_size: int, device_type: str) -> int:
    """Positions whose logits exist at a time: on an accelerator as many thousands as fit 2^28 logits (1 GiB in fp32).

    Every block costs some sixty kernels and one pass over the head's gradient, which a CPU does not notice.
    """
    return _BLOCK if device_type == "cpu" else _BLOCK * max(1, _BLOCK_LOGITS // vocab_size // _BLOCK)


class _FusedHead(torch.autograd.Function):
    """Gradients are summed in forward and handed out in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        head: Head,
        block: int,
        tail: Tail,
        scales: tuple[Tensor, Tensor],
        labels: Tensor,
        ids: Tensor,
        *leaves: Tensor,  # hidden, probs, weights, parameters of the head
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden, probs, weights, *parameters = leaves
        wanted = ctx.needs_input_grad[-len(leaves) :]
        # Sums over blocks need more digits than a half has.
        gradients = [torch.zeros_like(leaf, dtype=_at_least_single(leaf)) for leaf in leaves]
        sums = hidden.new_zeros(3, dtype=_at_least_single(hidden))
        for at in _blocks(len(labels), block):
            with torch.enable_grad():
                x = hidden[at].detach().requires_grad_(wanted[0])
                logits = head(x)
            found = _block_losses(
                _full_precision(logits.detach()),
                labels[at],
                ids[at],
                probs[at],
                weights[at],
                scales,
                tail,
            )
            sums += torch.stack(found[:3])
            gradients[1][at], gradients[2][at] = found[4:]
            reached = [
                (leaf, total)
                for leaf, total, needs in zip(
                    [x, *parameters], [gradients[0][at], *gradients[3:]], [wanted[0], *wanted[3:]], strict=True
                )
                if needs
            ]
            if reached:
                by_leaf = torch.autograd.grad(logits, [leaf for leaf, _ in reached], found[3].to(logits.dtype))
                for (_, total), gradient in zip(reached, by_leaf, strict=True):
                    total += gradient
        ctx.gradients = [
            total.to(leaf.dtype) if needs else None
            for leaf, total, needs in zip(leaves, gradients, wanted, strict=True)
        ]
        loss, lm, fuse = sums.unbind()
        ctx.mark_non_differentiable(lm, fuse)
        return loss, lm, fuse

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the fused head's backward pass runs once")
        return (*[None] * 6, *(None if gradient is None else gradient.mul_(by_loss) for gradient in gradients))


def _block_losses(
    z: Tensor,
    labels: Tensor,
    ids: Tensor,
    probs: Tensor,
    weights: Tensor,
    scales: tuple[Tensor, Tensor],
    tail: Tail,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss, L_lm, L_fuse (sums), and the loss's gradients by the logits `z` [n, V] (in z itself), probs and weights."""
    columns = torch.cat([labels[:, None], ids.flatten(1)], 1).clamp(min=0)  # the label first, then the support
    picked = z.gather(1, columns)
    highest = z.amax(-1, keepdim=True)
    q = torch.softmax(z, -1, out=z)
    with torch.enable_grad():
        # log q of the likeliest is exact, since it is at least 1 / V, and the others follow from it.
        logq = (picked - highest + q.amax(-1, keepdim=True).log()).requires_grad_()
        p, w = (leaf.detach().requires_grad_() for leaf in (probs, weights))
        nll = -logq[:, 0] * (labels >= 0)
        fuse = (w * cross_entropy(p, logq[:, 1:].reshape(p.shape), tail)).sum()
        loss = (scales[0] * nll).sum() + scales[1] * fuse
    by_logq, by_probs, by_weights = torch.autograd.grad(loss, [logq, p, w])
    # log q_i = z_i - logsumexp(z): every log q pulls its own logit up and all logits down by their share q.
    q.mul_(-by_logq.sum(-1, keepdim=True)).scatter_add_(1, columns, by_logq)
    return loss.detach(), nll.detach().sum(), fuse.detach(), q, by_probs, by_weights


def _blocks(n: int, block: int) -> Iterator[slice]:
    return (slice(start, start + block) for start in range(0, n, block))


def _full_precision(logits: Tensor) -> Tensor:
    return logits.to(_at_least_single(logits))


def _at_least_single(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
