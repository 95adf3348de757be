"""What fusion adds to the head: forward and backward of both losses beside a plain language-model cross-entropy.

Ours is everything that a step does for fusion and a step of `ct` does not: selection network, selection, fused loss,
and their backward passes. Beside it, in the same run: (a) the label's cross-entropy in the same blocked form, (b)
torch's, over whole logits, (c) a dense fusion in the manner of the published code, on so few positions that it fits.
Without a GPU one core computes, its own seconds are counted, and the width is small: the head's matrix products shrink,
so that what fusion adds weighs more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fusionx.benchmarks.measuring.figure import Figure, interleaved_seconds
from fusionx.benchmarks.measuring.memory import peak_of_a_process, resident
from fusionx.train.config import PRESETS, MethodConfig
from fusionx.train.objective.fused_head import fused_head
from fusionx.train.objective.losses import head_scales, local_totals, selection_loss
from fusionx.train.objective.selection_network import SelectionNetwork, choose, gate, normalised
from fusionx.train.objective.teacher import Candidates, select

LENGTH, BLOCK = 2048, 1024
DENSE_POSITIONS = 64


@dataclass(frozen=True)
class Case:
    """V, the hidden width, M candidates with k entries each."""

    vocab: int
    width: int
    candidates: int
    k: int

    @property
    def name(self) -> str:
        """As the aims name it where V is 32000."""
        sizes = f"{LENGTH}x{self.candidates}xk{self.k}"
        return sizes if self.vocab == 32000 else f"{sizes}, V={self.vocab // 1000}k"


def default_cases() -> list[Case]:
    width = 4096 if torch.cuda.is_available() else 256
    sizes = [(32000, 5, 10), (32000, 3, 32), (32000, 5, 64), (128256, 5, 10), (128256, 5, 64)]
    return [Case(vocab, width, candidates, k) for vocab, candidates, k in sizes]


def figures(cases: Sequence[Case] | None = None, n: int = 3) -> Iterator[Figure]:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for case in default_cases() if cases is None else cases:
        work = _Work(case, LENGTH)
        works = {name: partial(work.step, name) for name in ("ct", "fusionx-network", "fusellm", "paper")}
        seconds = interleaved_seconds({**works, "torch": work.torch_cross_entropy}, n, clock)
        plain = seconds["ct"]
        yield Figure("fusion", case.name, "seconds", seconds["fusionx-network"], "s", n=n)
        for name, metric in (
            ("fusionx-network", "ratio_time_to_ce"),
            ("paper", "paper_time_to_ce"),
            ("fusellm", "fusellm_time_to_ce"),
        ):
            ratio = seconds[name] / plain
            yield Figure("fusion", case.name, metric, ratio, "x", "blocked cross-entropy", ratio, n)
        ratio = seconds["fusionx-network"] / seconds["torch"]
        yield Figure("fusion", case.name, "ratio_time_to_torch_ce", ratio, "x", "torch's cross-entropy", ratio, n)
        few = _Work(case, DENSE_POSITIONS)
        dense = interleaved_seconds({"dense": few.dense_fusion}, 1, clock)["dense"] * LENGTH / DENSE_POSITIONS
        metric = "ratio_time_to_dense"
        yield Figure(
            "fusion",
            case.name,
            metric,
            seconds["fusionx-network"] / dense,
            "x",
            f"dense fusion, of {DENSE_POSITIONS} positions",
            seconds["fusionx-network"] / dense,
        )
        yield from _memory(case)
    torch.set_num_threads(threads)


def _memory(case: Case) -> Iterator[Figure]:
    """Peaks over what the inputs take, each in a process of its own."""
    sizes = (case.vocab, case.width, case.candidates, case.k)
    peaks = {
        name: peak_of_a_process(__name__, "peak_megabytes", name, *sizes) for name in ("fusionx-network", "ct", "torch")
    }
    yield Figure("fusion", case.name, "peak_memory", peaks["fusionx-network"], "MB")
    for metric, other, against in (
        ("ratio_memory_to_ce", "ct", "blocked cross-entropy"),
        ("ratio_memory_to_torch_ce", "torch", "torch's cross-entropy"),
    ):
        ratio = peaks["fusionx-network"] / peaks[other]
        yield Figure("fusion", case.name, metric, ratio, "x", against, ratio)


def peak_megabytes(name: str, vocab: int, width: int, candidates: int, k: int) -> float:
    """Of one forward and backward pass, over what the inputs take."""
    torch.set_num_threads(1)
    work = _Work(Case(vocab, width, candidates, k), LENGTH)
    call: Callable[[], None] = work.torch_cross_entropy if name == "torch" else partial(work.step, name)
    if work.device.type == "cuda":
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - allocated) / 1e6
    # Kernels and threads allocate their own buffers at their first use.
    torch.nn.functional.cross_entropy(work.hidden[:8] @ work.weight.T, work.candidates.labels[:8]).backward()
    work.forget()
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


class _Work:
    """Random hidden states, a head and candidates whose distributions are peaked; bf16 on a GPU, as it trains there."""

    def __init__(self, case: Case, positions: int) -> None:
        self.case = case
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        self.hidden = torch.randn(positions, case.width, device=self.device, requires_grad=True)
        self.weight = (torch.randn(case.vocab, case.width, device=self.device) / case.width**0.5).requires_grad_()
        self.candidates = _candidates(case, positions, self.device)
        self.networks = {
            name: SelectionNetwork(case.candidates, PRESETS[name].selection).to(self.device)
            for name in ("fusionx-network", "paper")
        }

    def step(self, name: str) -> None:
        """Forward and backward of the losses of a method's step, given the hidden states."""
        method: MethodConfig = PRESETS[name]
        candidates = self.candidates
        asn = self.networks.get(name)
        selection = None if name == "ct" else select(method, asn, candidates, self.case.vocab)
        totals = local_totals([candidates.labels], [selection], self.case.candidates)
        teacher = None if selection is None else selection.teacher
        scales = head_scales(method, totals)
        with self._autocast():
            head = fused_head(self._head, [self.weight], self.hidden, candidates.labels, teacher, *scales, BLOCK)
        loss = head.loss if selection is None else head.loss + selection_loss(method, selection, totals)
        loss.backward()
        self._done()

    def torch_cross_entropy(self) -> None:
        with self._autocast():
            loss = torch.nn.functional.cross_entropy(self._head(self.hidden), self.candidates.labels)
        loss.backward()
        self._done()

    def dense_fusion(self) -> None:
        """Dense targets filled position by position, the network over every (position, id), a dense P_f."""
        candidates, case = self.candidates, self.case
        n = len(candidates.labels)
        dense = torch.zeros(n, case.vocab, case.candidates)
        for position in range(n):
            for j in range(case.candidates):
                dense[position, candidates.ids[position, j].long().cpu(), j] = candidates.probs[position, j].cpu()
        dense = dense.to(self.device)
        everywhere = torch.ones(n, case.vocab, case.candidates, dtype=torch.bool, device=self.device)
        method = PRESETS["paper"]
        p = gate(self.networks["paper"](dense[..., None]), everywhere)
        w = normalised(p, choose(p, method.selection))
        logq = torch.log_softmax(self._head(self.hidden).float(), -1)
        fuse = -((w * dense).sum(-1) * logq).sum(-1).mean()
        importances = w.sum((0, 1))
        feed = importances.var(correction=0) / importances.mean() ** 2
        lm = torch.nn.functional.nll_loss(logq, candidates.labels)
        (lm + method.lambda_fuse * fuse + method.lambda_feed * feed).backward()
        self._done()

    def forget(self) -> None:
        """Drops the gradients."""
        for leaf in (self.hidden, self.weight, *(p for asn in self.networks.values() for p in asn.parameters())):
            leaf.grad = None

    def _done(self) -> None:
        self.forget()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _head(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden, self.weight)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")


def _candidates(case: Case, n: int, device: torch.device) -> Candidates:
    """Candidates that share about half of their ids, nine of ten of them aligned."""
    ids = torch.rand(n, 2 * case.candidates * case.k).argsort(-1)  # positions' own small pools, so that supports meet
    pool = torch.randint(0, case.vocab // 256, (n, 1)) * 128 + ids
    picks = torch.rand(n, case.candidates, pool.shape[1]).argsort(-1)[..., : case.k]
    chosen = pool[:, None].expand(n, case.candidates, -1).gather(-1, picks) % case.vocab
    mass = torch.distributions.Dirichlet(torch.full((case.k + 1,), 0.3)).sample((n, case.candidates))
    probs = mass[..., :-1].sort(-1, descending=True).values
    aligned = torch.rand(n, case.candidates) < 0.9
    labels = torch.where(torch.rand(n) < 0.6, chosen[:, 0, 0], torch.randint(0, case.vocab, (n,)))
    is_label = (chosen == labels[:, None, None]) & aligned[..., None]
    candidates = Candidates(
        torch.where(aligned[..., None], chosen, -1).int(),
        probs * aligned[..., None],
        (probs * is_label).sum(-1).masked_fill(~is_label.any(-1), float("nan")),
        aligned,
        labels,
        torch.full((n, case.candidates), 1 / case.candidates),
        1 + torch.rand(1, case.candidates),
        torch.zeros(n, dtype=torch.long),
    )
    return Candidates(*(field.to(device) for field in candidates))
