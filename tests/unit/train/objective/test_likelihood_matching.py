"""Likelihood matching against plain loops over bytes and a dense float64 objective, and whole trainings by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fusion_oracles import byte_spans, dense_losses, nll_of, random_candidates
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_builder import Chunk, Parts, make_job, write_logits
from small_steps import VOCAB, assert_close, gradients, linear_head, network, sum_of, variant
from torch import Tensor
from trainings import ALONE, CANDIDATES, Make, untimed_log

from fusionx.train.config import PRESETS, MethodConfig, TrainJob
from fusionx.train.loop.trainer import Trainer
from fusionx.train.model.target import load_target
from fusionx.train.objective.fused_head import fused_head, label_nll
from fusionx.train.objective.likelihood_matching import SpanTeacher, binary_divergence, span_loss
from fusionx.train.objective.losses import Totals, divisor, head_scales, local_totals, selection_loss
from fusionx.train.objective.selection_network import SelectionNetwork
from fusionx.train.objective.spans import Spans, joined, shifted, spans_between
from fusionx.train.objective.teacher import Candidates, select


@st.composite
def ends_of(draw: st.DrawFn, text: str) -> np.ndarray:
    """Some tokenization's `ends`: cuts anywhere, inside characters too, where the tokens may share the character's end;
    tokens of no byte, a BOS or none, and a tail that the tokenizer drops."""
    size = len(text.encode())
    cuts = sorted(draw(st.sets(st.integers(1, size))) | {size})
    if len(cuts) > 1 and draw(st.booleans()):
        cuts.pop(draw(st.sampled_from([len(cuts) - 1, 0])))
    if draw(st.booleans()):
        characters = [0, *np.cumsum([len(character.encode()) for character in text]).tolist()]
        cuts = [min(end for end in characters if end >= cut) for cut in cuts]
    repeated = [end for end in cuts for _ in range(draw(st.integers(1, 2)))]
    return np.array([0] * draw(st.integers(0, 2)) + repeated, np.int32)


@st.composite
def pairs_of_tokenizations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    text = draw(st.text(alphabet="ab é漢😀", min_size=1, max_size=10))
    return draw(ends_of(text)), draw(ends_of(text))


def divergence_of(teacher_nll: float, target_nll: Tensor, temperature: float) -> Tensor:
    """The paper's formula, letter by letter."""
    p, q = math.exp(-teacher_nll) ** (1 / temperature), (-target_nll).exp() ** (1 / temperature)
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


@settings(max_examples=300, deadline=None)
@given(pair=pairs_of_tokenizations(), seed=st.integers(0, 1000))
def test_spans_are_the_bytes_between_agreeing_boundaries(pair: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    source, target = pair
    rng = np.random.default_rng(seed)
    own, label = rng.uniform(0, 9, len(source)).astype(np.float32), rng.uniform(0, 9, len(target)).astype(np.float32)
    found = spans_between(source, target, own, 3)
    expected = byte_spans(source.tolist(), target.tolist())
    assert [(target[start], target[stop]) for start, stop in zip(found.starts, found.stops, strict=True)] == expected
    assert found.nll.dtype == np.float32
    assert (found.candidates == 3).all()
    for index, span in enumerate(expected):
        assert found.nll[index] == pytest.approx(nll_of(span, source.tolist(), own.tolist()), rel=1e-6)
        of_target = label[found.starts[index] : found.stops[index]].sum()
        assert of_target == pytest.approx(nll_of(span, target.tolist(), label.tolist()), rel=1e-5)


def test_a_first_token_without_nll_is_in_no_span() -> None:
    """Only where both begin with a BOS has the first word an NLL on both sides."""
    with_bos, without = np.array([0, 3, 7]), np.array([3, 7])
    nll = np.array([1.0, 2.0, 0.0], np.float32)
    assert spans_between(with_bos, with_bos, nll, 0).nll.tolist() == [1, 2]
    assert spans_between(with_bos, without, nll, 0).nll.tolist() == [2]
    assert spans_between(without, with_bos, nll[1:], 0).nll.tolist() == [2]
    assert len(spans_between(np.array([4]), without, nll[:1], 0).nll) == 0
    assert len(spans_between(np.zeros(0, np.int32), without, nll[:0], 0).nll) == 0


def test_an_impossible_token_spoils_its_own_span_only() -> None:
    """Its stored log-probability is -inf."""
    ends, nll = np.array([0, 1, 2, 3]), np.array([1.0, np.inf, 2.0, 0.0], np.float32)
    found = spans_between(ends, ends, nll, 0)
    assert found.nll.tolist() == [1, np.inf, 2]
    assert binary_divergence(torch.from_numpy(found.nll), torch.ones(3), 100.0).isfinite().all()


@given(
    x=st.floats(1e-3, 200), y=st.floats(1e-3, 200), temperature=st.sampled_from([1.0, 10.0, 100.0]),
)  # fmt: skip
def test_divergence_is_the_papers(x: float, y: float, temperature: float) -> None:
    target_nll = torch.tensor(y, dtype=torch.float64, requires_grad=True)
    teacher_nll = torch.tensor(x, dtype=torch.float64)
    found = binary_divergence(teacher_nll, target_nll, temperature)
    assert float(found.detach()) >= -1e-12
    assert float(binary_divergence(teacher_nll, teacher_nll, temperature)) == 0
    if max(x, y) / temperature < 30:  # beyond, 1 - p is 1 in the letters of the formula
        expected = divergence_of(x, target_nll, temperature)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-11)
        ours, theirs = (torch.autograd.grad(value, target_nll)[0] for value in (found, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize("sure", [0.0, -1e-7, 1e-9])
def test_certainty_on_one_side_is_finite(sure: float) -> None:
    for pair in ((sure, 5.0), (5.0, sure), (sure, sure)):
        nll = torch.tensor([pair[1]], requires_grad=True)
        span = torch.tensor([0]), torch.tensor([1]), torch.tensor([pair[0]])
        value, slope = span_loss(SpanTeacher(*span, torch.ones(1), 100.0), nll)
        assert value.isfinite()
        assert slope.isfinite().all()


class Case:
    """Chunks with random tokenizations under a random target; two of the three candidates have another tokenizer."""

    def __init__(self, seed: int, lengths: tuple[int, ...] = (5, 1, 4)) -> None:
        rng = np.random.default_rng(seed)
        n = sum(length - 1 for length in lengths)
        self.candidates = random_candidates(seed, n=n, m=3, chunks=1)
        self.candidates = self.candidates._replace(
            chunk_of=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths) - 1),
            nll_per_byte=torch.from_numpy(rng.uniform(0.5, 1.5, (len(lengths), 3))),
        )
        self.hidden, self.weight = linear_head(seed, n)
        self.firsts = np.cumsum([0, *(length - 1 for length in lengths)]).tolist()
        self.rows: list[list[tuple[list[int], list[float]]]] = []  # ends and NLLs of every chunk and candidate
        self.target_ends, pieces = [], []
        for length in lengths:
            size = 3 * length
            ends = np.sort(rng.choice(size, length, replace=False)).astype(np.int32)
            self.target_ends.append(ends.tolist())
            self.rows.append([])
            for j in range(3):
                other = np.sort(rng.choice(size, 2 * length, replace=False)).astype(np.int32) if j else ends
                nll = rng.uniform(0.01, 6, len(other)).astype(np.float32)
                self.rows[-1].append((other.tolist(), nll.tolist()))
                pieces.append(spans_between(other, ends, nll, j))
        self.pieces = [joined(pieces[3 * chunk : 3 * chunk + 3]) for chunk in range(len(lengths))]

    def micro_batch(self, chunks: range) -> tuple[Candidates, Tensor, Spans[Tensor]]:
        at = slice(self.firsts[chunks.start], self.firsts[chunks.stop])
        moved = [shifted(self.pieces[chunk], self.firsts[chunk] - at.start) for chunk in chunks]
        fields = [field[at] for field in self.candidates[:6]]
        whole = self.candidates._replace(chunk_of=self.candidates.chunk_of - chunks.start)
        nll_per_byte = whole.nll_per_byte[chunks.start : chunks.stop]
        candidates = Candidates(*fields, nll_per_byte, whole.chunk_of[at])  # type: ignore[arg-type]
        return candidates, self.hidden[at], Spans(*map(torch.from_numpy, joined(moved)))

    def dense_fusion(self, method: MethodConfig, w: Tensor) -> Tensor:
        """L_fuse from whole logits, one span after another. w: [N, M], the weights at every position."""
        log_q = torch.log_softmax(self.hidden @ self.weight.T, -1)
        label = -log_q[torch.arange(len(log_q)), self.candidates.labels]
        terms, weights = [], []
        for first, ends, row in zip(self.firsts, self.target_ends, self.rows, strict=False):
            for j, (other, nll) in enumerate(row):
                for span in byte_spans(other, ends):
                    before = max(place for place, end in enumerate(ends) if end == span[0])
                    target_nll = nll_of(span, ends, list(label[first : first + len(ends) - 1]))
                    weights.append(w[first + before, j])
                    terms.append(weights[-1] * divergence_of(nll_of(span, other, nll), target_nll, method.temperature))
        total = sum_of(weights)
        return sum_of(terms) / total if total > 0 else sum_of(terms)


def objective(
    method: MethodConfig, asn: SelectionNetwork | None, case: Case, cuts: list[range], block: int
) -> tuple[Tensor, Tensor]:
    """The step's loss, right in its gradient, and the value of L_fuse, as the trainer makes them."""
    batches = [case.micro_batch(chunks) for chunks in cuts]
    selections = [select(method, asn, candidates, VOCAB, spans) for candidates, _, spans in batches]
    labels = [candidates.labels for candidates, _, _ in batches]
    totals = Totals.from_vector(local_totals(labels, selections, 3).vector())
    scales = head_scales(method, totals)
    losses = [
        fused_head(
            lambda h: h @ case.weight.T, [case.weight], hidden, candidates.labels, selection.teacher, *scales, block
        )
        for selection, (candidates, hidden, _) in zip(selections, batches, strict=True)
    ]
    total = sum_of([one.loss for one in losses]) + sum_of([selection_loss(method, one, totals) for one in selections])
    return total, sum_of([one.fuse for one in losses]) / divisor(totals.taught)


LIKELIHOOD: dict[str, Any] = {"fuse": "likelihood", "lambda_fuse": 40}
METHODS = {
    "network": variant("fusionx", **LIKELIHOOD),
    "sequence, temperature 2": variant("fusionx", {"granularity": "sequence"}, **LIKELIHOOD, temperature=2.0),
    "average of all": variant("fusionx", {"fusion": "average", "choice": "all"}, **LIKELIHOOD),
    "unweighted": variant("fusionx", {"fusion": "unweighted"}, **LIKELIHOOD),
    "MinCE": variant("fusellm", **LIKELIHOOD),
    "AvgCE": variant("fusellm-avgce", **LIKELIHOOD),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", METHODS)
def test_objective_equals_the_dense_one(name: str, seed: int) -> None:
    """In any blocks and micro-batches; what the network learns from is what it is without L_fuse."""
    method, case = METHODS[name], Case(seed)
    asn = network(method, seed=seed)
    leaves = [case.hidden, case.weight, *(asn.parameters() if asn is not None else [])]
    whole = [range(3)]
    plain = select(method.model_copy(update={"fuse": "distributions"}), asn, case.candidates, VOCAB)
    fuse = case.dense_fusion(method, plain.teacher.weights.detach())
    unfused = method.model_copy(update={"lambda_fuse": 0})
    rest = dense_losses(unfused, asn, case.candidates, case.hidden @ case.weight.T).total
    theirs = gradients(rest + method.lambda_fuse * fuse, leaves)
    assert float(fuse.detach()) > 0
    for cuts, block in ((whole, 100), (whole, 2), ([range(2), range(2, 3)], 3)):
        total, value = objective(method, asn, case, cuts, block)
        torch.testing.assert_close(value, fuse.detach(), rtol=1e-5, atol=1e-9)
        for ours, expected in zip(gradients(total, leaves), theirs, strict=True):
            assert_close(ours, expected)


def test_weights_below_one_in_all_are_a_mean_too() -> None:
    """One span of weight 0.1 counts as much as if its weight were 1."""
    found = []
    for weight in (0.1, 1.0):
        case, method = Case(0), METHODS["MinCE"]
        teacher = SpanTeacher(
            *(torch.tensor([value]) for value in (0, 2)), torch.tensor([3.0]), torch.tensor([weight]), 100.0
        )
        scales = (torch.tensor(0.0), method.lambda_fuse / divisor(torch.tensor(weight, dtype=torch.float64)))
        head = [lambda h: h @ case.weight.T, [case.weight], case.hidden, case.candidates.labels]  # noqa: B023
        found.append(gradients(fused_head(*head, teacher, *scales, 4).loss, [case.weight])[0])  # type: ignore[arg-type]
    assert_close(*found)
    assert found[0].abs().max() > 0


def test_a_teacher_that_is_the_target_has_nothing_to_say() -> None:
    """The loss is 0 and the gradient that of L_lm alone."""
    case = Case(1, lengths=(8,))
    head: list[Any] = [lambda h: h @ case.weight.T, [case.weight], case.hidden, case.candidates.labels]
    own = np.append(label_nll(head[0], case.hidden, head[3], 3).numpy(), 0)
    ends = np.array(case.target_ends[0])
    spans = spans_between(ends, ends, own, 0)
    teacher = SpanTeacher(*map(torch.from_numpy, (spans.starts, spans.stops, own[:-1])), torch.ones(7), 100.0)
    scales = torch.tensor(1 / 7), torch.tensor(100 / 7)
    found, alone = fused_head(*head, teacher, *scales, 3), fused_head(*head, None, *scales, 3)
    assert float(found.fuse) == pytest.approx(0, abs=1e-12)
    for ours, theirs in zip(*(gradients(one.loss, [case.hidden, case.weight]) for one in (found, alone)), strict=True):
        assert_close(ours, theirs)


def test_it_pulls_towards_the_teachers_likelihood() -> None:
    """A target that is too sure becomes less so, one that is not sure enough more so."""
    teacher = SpanTeacher(torch.tensor([0]), torch.tensor([2]), torch.tensor([4.0]), torch.ones(1), 100.0)
    for nll, sign in ((1.0, -1), (2.0, 0), (3.0, 1)):  # of each of two tokens
        _, slopes = span_loss(teacher, torch.full((2,), nll, dtype=torch.float64))
        assert slopes.sign().tolist() == [sign, sign] if sign else slopes.abs().max() < 1e-12


def test_no_span_is_no_loss() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    value, slopes = span_loss(SpanTeacher(nothing, nothing, torch.zeros(0), torch.zeros(0), 100.0), torch.ones(4))
    assert float(value) == 0
    assert not slopes.any()


# Trainings (what every method must leave and how it resumes is tested with the others)


def test_the_log_tells_the_divergence(finished: Callable[[str], Path]) -> None:
    values = [line["fuse"] for line in untimed_log(finished("likelihood")) if line["event"] == "step"]
    assert all(0 < value < 1 for value in values)
    assert len(set(values)) == len(values)


def one_step(job: TrainJob) -> list[Tensor]:
    """Without dropout: the sums of the terms, L_fuse itself, and every gradient."""
    trainer = Trainer(job, ALONE)
    trainer.target.model.eval()
    batches = trainer.batches[0]
    selections = [trainer._select(batch) for batch in batches]
    totals = trainer._agree(batches, selections)
    scales = head_scales(job.method, totals)
    sums = sum(trainer._backward(*pair, totals, scales) for pair in zip(batches, selections, strict=True))
    modules = [trainer.target.model, *([trainer.asn] if trainer.asn is not None else [])]
    gradients = [leaf.grad for module in modules for leaf in module.parameters()]
    return [sums, sums[1] / divisor(totals.taught), *gradients]  # type: ignore[index, list-item]


@pytest.mark.parametrize("method", ["likelihood", "likelihood, MinCE"])
def test_micro_batches_and_blocks_change_nothing(method: str, make: Make, tmp_path: Path) -> None:
    whole = one_step(make(tmp_path / "whole", method))
    divided = one_step(make(tmp_path / "divided", method, run={"micro_batch": 1, "head_block": 5}))
    for one, other in zip(whole, divided, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_candidate_that_says_what_the_target_says_teaches_nothing(
    model: Path, parts: Parts, make: Make, tmp_path: Path
) -> None:
    """The whole pipeline: the target's own NLLs, as a logits part stores them, against the target as it is read."""
    target = load_target(str(model), None, torch.device("cpu")).model.eval()

    @torch.no_grad()
    def scored(chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        ids = torch.from_numpy(chunk.input_ids).long()
        log_q = torch.log_softmax(target(input_ids=ids[None]).logits[0, :-1], -1)
        return chunk.ends, np.append(-log_q.gather(1, ids[1:, None]).numpy(), 0)

    for name, said, holds in (("own", scored, (0, 1e-6)), ("other", None, (1e-3, 1))):
        logits = {one: write_logits(tmp_path / name / one, parts, one, scored=said) for one in CANDIDATES}
        fuse = float(one_step(make(tmp_path / "out" / name, "likelihood", logits=logits))[1])
        assert holds[0] <= fuse < holds[1]


def test_default_trainings_are_what_they_were(tmp_path: Path) -> None:
    """No trace of the option in a job that does not use it."""
    job = make_job(tmp_path, "tokens", dict.fromkeys(CANDIDATES, "a"), tmp_path)
    assert job.content()["method"].keys() == PRESETS["fusionx"].content().keys()
    assert "logits" not in job.content()
    assert not {"fuse", "temperature"} & job.content()["method"].keys()
