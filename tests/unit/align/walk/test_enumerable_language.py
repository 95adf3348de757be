"""The walk in languages so small that the truth can be counted: every text, and every token that may come next."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_language import Language, View, bpe, exact, longest_match, neighbours

from fusionx.align.walk.lexicon import Lexicon
from fusionx.align.walk.part import PartWalk, WalkedPart
from fusionx.align.walk.state import Trail
from fusionx.contract.tokens.encoder import Encoder

PIECES = st.lists(st.text("ab", min_size=2, max_size=4), max_size=6)
MERGES = st.lists(st.tuples(st.sampled_from(["a", "b", "ab", "ba"]), st.sampled_from(["a", "b"])), max_size=5)
HALF = 2e-3
"""What the shards' rounding to fp16 does to a probability."""


@st.composite
def merges(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges that a byte pair encoding can have: of pieces that there are, each made once."""
    pieces, found = {"a", "b"}, []
    for left, right in draw(MERGES):
        if {left, right} <= pieces and left + right not in pieces:
            found.append((left, right))
            pieces.add(left + right)
    return found


@dataclass(frozen=True)
class Walk:
    """A language seen by source and target, and the walk over all its texts."""

    language: Language
    source: View
    target: View
    walked: WalkedPart
    trail: Trail

    @classmethod
    def of(cls, seed: int, source: Encoder, target: Encoder, informed: bool, k: int | None = None) -> "Walk":
        language = Language.over("ab", 6, np.random.default_rng(seed))
        views = View(language, source), View(language, target)
        said, nll = views[0].said(k)
        columns = (views[1].ids, views[1].ends, views[0].ids, views[0].ends)
        part = PartWalk(Lexicon(source, target), *columns, said, nll)
        trail = Trail.of(1 << 17)
        walked = part.distributions(exact(views[1]) if informed else None, 64, trail)
        assert trail.size[0] < 1 << 17
        return cls(language, *views, walked, trail)

    @property
    def starts(self) -> np.ndarray:
        return np.append(0, np.cumsum(self.walked.counts, dtype=np.int64))

    def undecided(self) -> np.ndarray:
        """Per position the mass of entries that were divided, or filled in, because the source did not say.

        What the label gets of a division is taken back, as it has it from the own path: divided it was all the same.
        The text's own path has no source token in the trail either; alone, it has the label as its only target.
        """
        shares: dict[tuple[int, int, int], dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for row in range(int(self.trail.size[0])):
            key = (int(self.trail.position[row]), int(self.trail.step[row]), int(self.trail.source[row]))
            shares[key][int(self.trail.target[row])] += max(0.0, float(self.trail.mass[row]))
        found = np.zeros(len(self.walked.counts))
        for (position, _, source), targets in shares.items():
            label = int(self.target.ids.values[position + 1])
            if len(targets) > 1 or (source < 0 and label not in targets):
                found[position] += sum(targets.values())
        return found

    def contradicted(self, past: tuple[int, ...], position: int) -> float:
        """Mass of tokens before which the target would have written what is past otherwise."""
        pieces = self.target.encoder.table.filled_bytes
        text, found = b"".join(pieces[token] for token in past), 0.0
        for entry in range(self.starts[position], self.starts[position + 1]):
            ids = self.target.encoder.encode([(text + pieces[self.walked.ids[entry]]).decode()])[0].ids
            if tuple(ids[: len(past)].tolist()) != past:
                found += float(self.walked.probs[entry])
        return found

    def contexts(self) -> list[tuple[float, float, float]]:
        """Of every past of the target's tokens: its probability, how far the average of the walk's distributions over
        all texts with that past is from the truth (total variation), and the undecided and contradicted mass so far."""
        undecided, starts = self.undecided(), self.starts
        mass: dict[tuple[int, ...], float] = defaultdict(float)
        open_mass: dict[tuple[int, ...], float] = defaultdict(float)
        average: dict[tuple[int, ...], dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for text, (first, last) in enumerate(neighbours(self.target.ids)):
            prob, past, before = float(self.language.probs[text]), (), 0.0
            for position in range(first, last - 1):
                past = (*past, int(self.target.ids.values[position]))
                before += undecided[position] + self.contradicted(past, position)
                mass[past] += prob
                open_mass[past] += prob * min(before, 1.0)
                for entry in range(starts[position], starts[position + 1]):
                    average[past][int(self.walked.ids[entry])] += prob * float(self.walked.probs[entry])
        found = []
        for past, prob in mass.items():
            if prob < 1e-3:  # of less, the rounding of the shards shows
                continue
            truth = self.target.next_tokens(past)
            tokens = truth.keys() | average[past].keys()
            far = sum(abs(truth.get(token, 0.0) - average[past][token] / prob) for token in tokens) / 2
            found.append((prob, far, open_mass[past] / prob))
        return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), PIECES, st.data())
def test_the_average_over_texts_is_the_truth_where_the_source_decides(
    seed: int, source: list[str], data: st.DataObject
) -> None:
    """Every token of the target is one of the source's, so that no token depends on more than the next source token."""
    target = data.draw(st.lists(st.sampled_from(source), unique=True) if source else st.just([]))
    walk = Walk.of(seed, longest_match(source, "ab"), longest_match(target, "ab"), informed=True)
    for _, far, undecided in walk.contexts():
        assert undecided > 1e-6 or far < HALF


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), PIECES, PIECES)
@example(1, ["aa", "bb", "baa", "bab"], ["aa"])  # most of what is filled in falls to the label
@example(0, ["ba", "bb", "aab", "aaaa"], ["bb", "aab", "aaaa"])  # and most of what is divided
def test_where_it_does_not_decide_the_error_is_bounded(seed: int, source: list[str], target: list[str]) -> None:
    """By the mass that was divided or filled in, and what a later token would have changed of the target's past."""
    walk = Walk.of(seed, longest_match(source, "ab"), longest_match(target, "ab"), informed=True)
    contexts = walk.contexts()
    assert sum(prob * far for prob, far, _ in contexts) <= sum(prob * open_ for prob, _, open_ in contexts) + HALF


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), merges(), merges(), st.booleans(), st.sampled_from([None, 1, 2, 3]))
def test_the_text_costs_what_the_source_said(
    seed: int,
    source: list[tuple[str, str]],
    target: list[tuple[str, str]],
    informed: bool,
    k: int | None,
) -> None:
    walk = Walk.of(seed, bpe(source, "ab"), bpe(target, "ab"), informed, k)
    _, nll = walk.source.said(k)
    for text, ((first, last), (begin, end)) in enumerate(
        zip(neighbours(walk.target.ids), neighbours(walk.source.ids), strict=True)
    ):
        own, found = nll[begin : end - 1].sum(), -np.log(walk.walked.label[first : last - 1]).sum()
        if walk.language.probs[text] > 1e-6 and k is None:
            assert found <= own + HALF * (last - first)  # the own path is part of every next token's probability
        assert np.isfinite(found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), merges(), merges(), st.booleans(), st.sampled_from([None, 1, 2]), st.integers(1, 4))
def test_never_more_than_one_and_the_label_always_kept(
    seed: int,
    source: list[tuple[str, str]],
    target: list[tuple[str, str]],
    informed: bool,
    k: int | None,
    kept: int,
) -> None:
    language = Language.over("ab", 5, np.random.default_rng(seed))
    views = View(language, bpe(source, "ab")), View(language, bpe(target, "ab"))
    said, nll = views[0].said(k)
    columns = (views[1].ids, views[1].ends, views[0].ids, views[0].ends)
    part = PartWalk(Lexicon(views[0].encoder, views[1].encoder), *columns, said, nll)
    walked = part.distributions(exact(views[1]) if informed else None, kept)
    starts = np.append(0, np.cumsum(walked.counts, dtype=np.int64))
    for first, last in neighbours(views[1].ids):
        assert walked.counts[last - 1] == 0  # nothing follows
        for position in range(first, last - 1):
            entries = slice(starts[position], starts[position + 1])
            ids, probs = walked.ids[entries].tolist(), walked.probs[entries]
            assert 1 <= len(ids) <= kept
            assert len(set(ids)) == len(ids)
            assert probs.sum(dtype=np.float64) <= 1 + 1e-6
            assert (np.diff(probs) <= 0).all()
            label = ids.index(int(views[1].ids.values[position + 1]))
            assert probs[label] == pytest.approx(walked.label[position], rel=1e-5, abs=1e-30)


def test_equal_tokenizers_say_what_the_source_says() -> None:
    encoder = bpe([("a", "b"), ("ab", "b"), ("b", "a")], "ab")
    walk = Walk.of(3, encoder, encoder, informed=False)
    for text, (first, last) in enumerate(neighbours(walk.target.ids)):
        past = tuple(walk.target.ids.values[first:last].tolist())
        for position in range(first, last - 1):
            truth = walk.target.next_tokens(past[: position - first + 1])
            entries = range(walk.starts[position], walk.starts[position + 1])
            found = {int(walk.walked.ids[entry]): float(walk.walked.probs[entry]) for entry in entries}
            if walk.language.probs[text] > 1e-4:
                assert found == pytest.approx({token: prob for token, prob in truth.items() if prob > 1e-20}, abs=HALF)


def test_two_source_tokens_for_one_of_the_target() -> None:
    """By hand. The source writes a and b apart: the target's ab has P(a) P(b | a); of the rest of P(a) its a."""
    language = Language(["aa", "ab", "ba", "bb"], np.array([0.1, 0.3, 0.2, 0.4]))
    views = View(language, longest_match([], "ab")), View(language, longest_match(["ab"], "ab"))
    said, nll = views[0].said()
    part = PartWalk(
        Lexicon(views[0].encoder, views[1].encoder), views[1].ids, views[1].ends, views[0].ids, views[0].ends, said, nll
    )
    walked = part.distributions(exact(views[1]), 8)
    starts = np.append(0, np.cumsum(walked.counts, dtype=np.int64))
    table = views[1].encoder.table

    def at(text: int, position: int) -> dict[bytes | None, float]:
        here = neighbours(views[1].ids)[text][0] + position
        entries = range(starts[here], starts[here + 1])
        return {table.token_bytes[walked.ids[entry]]: float(walked.probs[entry]) for entry in entries}

    assert at(1, 0) == pytest.approx({b"ab": 0.3, b"a": 0.1, b"b": 0.6}, abs=HALF)
    assert at(0, 0) == pytest.approx({b"ab": 0.3, b"a": 0.1, b"b": 0.6}, abs=HALF)
    # At bb's start the source's a is undecided; the target itself expects ab three times as often as a.
    assert at(3, 0) == pytest.approx({b"ab": 0.3, b"a": 0.1, b"b": 0.6}, abs=HALF)
    # After the target's a only another a can come: of ab it would have made one token.
    assert at(0, 1) == pytest.approx({b"a": 1.0}, abs=HALF)
