"""What a person is told about a walk, where it is known what is right."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from tokenizer_builder import made, wrapped
from tokenizers import Tokenizer, models

from fusionx.align.positions import Status
from fusionx.align.walk.explain import Movement, OwnPath, Reading, WalkedPosition, explain_walk
from fusionx.align.walk.explained_lines import walk_lines
from fusionx.contract.shards.codec import Distributions
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.token_table import token_table

Dist = dict[str, float]


def encoder(*pairs: str, bos: bool = True) -> Encoder:
    """The characters a to d, and the pairs of them that are tokens, too."""
    pieces = ["<s>", "\n", *"abcd", *pairs]
    backend = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, [(a, b) for a, b in pairs]))
    tokenizer = wrapped(backend, bos_token="<s>")
    return Encoder.of(tokenizer, token_table(tokenizer), bos)


def reading(of: Encoder, text: str, *dists: Dist) -> Reading:
    """What a model says at each token of `text`; after the last, nothing."""
    (encoding,) = of.encode([text])
    assert len(dists) == len(encoding.ids) - 1
    vocab = of.tokenizer.get_vocab()
    ids, probs, counts = [], [], []
    for dist in (*dists, {"a": 0.5}):
        ids += [vocab[piece] for piece in dist]
        probs += list(dist.values())
        counts.append(len(dist))
    tails = [1 - sum(dist.values()) for dist in (*dists, {"a": 0.5})]
    said = Distributions(
        np.array(ids, np.int32), np.log(probs).astype(np.float16), np.array(counts, np.uint16), np.float16(tails)
    )
    of_text = [
        dist[of.tokenizer.convert_ids_to_tokens(int(token))]
        for dist, token in zip(dists, encoding.ids[1:], strict=True)
    ]
    return Reading(encoding, said, np.append(-np.log(of_text), 0.0).astype(np.float32))


def lines(source: Encoder, target: Encoder, text: str, by_source: list[Dist], by_target: list[Dist], k: int = 8) -> str:
    read = reading(source, text, *by_source), reading(target, text, *by_target)
    found = walk_lines(explain_walk(source, target, text, *read, k), "teacher", "pupil")
    return "\n".join("".join(piece for piece, _ in line) for line in found[4:])


def test_an_entry_that_leaves_open_which_is_divided_by_the_target() -> None:
    assert (
        lines(
            encoder(),
            encoder("cd"),
            "ab",
            [{"a": 0.5, "b": 0.3, "c": 0.1}, {"b": 1.0}],
            [{"a": 0.3, "c": 0.3, "cd": 0.1}, {"b": 0.5, "a": 0.5}],
        )
        == """\
#  text so far  next token  teacher  pupil  alignment
0               'a'           50.0%  30.0%  boundaries agree
     50.0%  'a'     ->  'a'                  the text itself: 50.0%
     30.0%  'b'     ->  'b'
     10.0%  'c'     ->  'c' 7.5%, 'cd' 2.5%  undecided: divided by the target itself
     10.0%  (tail)                           beyond what is stored

1            a  'b'          100.0%  50.0%  boundaries agree
    100.0%  'b'     ->  'b'                  the text itself: 100.0%"""
    )


def test_inside_a_token_what_ended_before_is_filled_in() -> None:
    """At the second position the source's 'a' says no more: its .2 is the target's, of .633 that may have led here (a
    third of the vocabulary begins with a, and so of the tail)."""
    assert (
        lines(
            encoder("ab"),
            encoder(),
            "ab",
            [{"ab": 0.4, "a": 0.2, "b": 0.2, "c": 0.1}],
            [{"a": 1.0}, {"b": 0.5, "c": 0.3}],
        )
        == """\
#  text so far  next token  teacher   pupil  alignment
0               'a'           63.3%  100.0%  boundaries agree
     40.0%  'ab'            ->  'a'                  the text itself: 40.0%
     20.0%  'a'             ->  'a'
     20.0%  'b'             ->  'b'
     10.0%  'c'             ->  'c'
      3.3%  (tail)          ->  'a'                  as much of it as tokens begin so
      6.7%  (tail)                                   beyond what is stored

1            a  'b'           78.9%   50.0%  inside a source token
     63.2%  'a|b'           ->  'b'                  the text itself: 63.2% begun
     25.3%  (no more said)  ->  'b' 15.8%, 'c' 9.5%  filled in by the target itself
     11.6%  (tail)                                   beyond what is stored"""
    )


def test_nothing_else_that_is_compatible_is_said() -> None:
    said = lines(encoder("ab"), encoder(), "ab", [{"ab": 0.4, "c": 0.6}], [{"a": 1.0}, {"b": 1.0}])
    assert "inside a source token that nothing else is compatible with\n    100.0%  'a|b'" in said


def test_what_goes_on_to_a_longer_token_leaves() -> None:
    """After the source's 'a' a 'b' makes the target's 'ab': 'a' keeps .7 of .8, and at the next position 'c' has .6 of
    the .7 that is left."""
    assert (
        lines(
            encoder(),
            encoder("ab"),
            "ac",
            [{"a": 0.8, "d": 0.2}, {"c": 0.6, "b": 0.3}],
            [{"a": 1.0}, {"c": 0.5}],
        )
        == """\
#  text so far  next token  teacher   pupil  alignment
0               'a'           56.0%  100.0%  boundaries agree
     56.0%  'a'      ->  'a'   the text itself: 80.0% x 70.0% (longer tokens leave)
     24.0%  'a' 'b'  ->  'ab'
     20.0%  'd'      ->  'd'

1            a  'c'           85.7%   50.0%  boundaries agree
     85.7%  'c'      ->  'c'   the text itself: 60.0% / 70.0% (longer tokens left before)
     14.3%  (tail)             beyond what is stored"""
    )


def test_a_source_token_that_agrees_so_far_goes_on() -> None:
    """'ab' and 'ac' both begin as the text does; the second goes on inside the target's 'c'."""
    said = lines(
        encoder("ab", "ac"), encoder(), "ab", [{"ab": 0.5, "ac": 0.25, "d": 0.25}], [{"a": 1.0}, {"b": 0.5, "c": 0.3}]
    )
    assert "33.3%  'a|c'  ->  'c'  begun earlier" in said


def test_what_is_not_aligned_and_what_is_not_kept_is_said() -> None:
    source, target = encoder(bos=False), encoder("cd")
    said = lines(source, target, "aa", [{"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}], [{"a": 1.0}] * 2, k=2)
    first, second = said.split("\n\n")
    assert (
        first.splitlines()[1]
        .split("  ", 8)[-1]
        .endswith("-  100.0%  not aligned: the source says nothing here (it has read no token yet)")
    )
    assert second.splitlines()[-1].split() == ["30.0%", "(tail)", "too", "small", "to", "be", "kept"]


def test_a_tokenizer_onto_itself_moves_nothing() -> None:
    same = encoder("ab")
    dists = [{"ab": 0.5, "a": 0.3, "b": 0.2}, {"c": 0.75, "a": 0.25}]
    read = reading(same, "abc", *dists)
    for position, dist in zip(explain_walk(same, same, "abc", read, read, 8), dists, strict=True):
        assert position.own is not None
        moved = {position.own.source: position.own.mass} | {move.source: move.mass for move in position.movements}
        assert moved == pytest.approx({f"'{piece}'": prob for piece, prob in dist.items()}, abs=1e-3)


def test_only_the_large_movements_are_listed() -> None:
    own = OwnPath("'a'", False, 1.0, [0.2], 1.0, 0.2)
    shares = [0.3, 0.1, 0.1, 0.1, 0.05, 0.02, 0.02, 0.01, 0.005]
    movements = [Movement(f"'{at}'", [("'x'", share)], False) for at, share in enumerate(shares)]
    position = WalkedPosition(0, "", "'a'", 0.2, 0.1, Status.EXACT_BOUNDARY, own, movements, 0.095, 0.0)
    small = WalkedPosition(1, "", "'a'", 0.2, 0.1, Status.EXACT_BOUNDARY, own, movements[-2:], 0.785, 0.0)
    found = ["".join(piece for piece, _ in line) for line in walk_lines([position, small], "s", "t")[6:]]
    assert [line.split()[:2] for line in found[:9]] == [
        ["20.0%", "'a'"],
        *([f"{share:.1%}", f"'{at}'"] for at, share in enumerate(shares[:6])),
        ["3.5%", "(3"],
        ["9.5%", "(tail)"],
    ]
    assert [line.split()[:3] for line in found[12:]] == [
        ["1.0%", "'7'", "->"],
        ["0.5%", "(1", "more)"],
        ["78.5%", "(tail)", "beyond"],
    ]


KINDS = ["byte-level", "sentencepiece", "starcoder", "unigram", "gemma", "wordpiece", "byte-level"]


def noise(of: Encoder, text: str, rng: np.random.Generator, k: int = 16) -> Reading:
    """Of a model that says anything, and has the text's own next token among its entries every second time."""
    (encoding,) = of.encode([text])
    ids, probs, nll = [], [], []
    for position, label in enumerate([*encoding.ids[1:].tolist(), 0]):
        others = rng.permutation(np.setdiff1d(np.arange(of.vocab_size), label))[:k]
        dist = -np.sort(-rng.dirichlet(np.full(k + 1, 0.3)))
        dist = np.append(dist[:k] * 0.9, 0.1 + 0.9 * dist[k])
        rank = int(rng.integers(k))
        if position % 2:
            others[rank] = label
        ids.append(others)
        probs.append(dist)
        nll.append(-np.log(dist[rank] if position % 2 else dist[k] / 3))
    stacked = np.maximum(np.array(probs), 1e-4)
    said = Distributions.from_top_k(np.array(ids), np.log(stacked[:, :k]), np.array(probs)[:, k])
    return Reading(encoding, said, np.minimum(nll, -np.log(1e-4)).astype(np.float32))


@pytest.mark.parametrize(("source", "target"), list(pairwise(KINDS)))
def test_masses_sum_to_one_and_the_path_is_its_product(source: str, target: str) -> None:
    """Whatever two models say."""
    text, rng = "The quick brown fox, naïve 你好\n    return a + b  😀 abc", np.random.default_rng(0)
    encoders = [Encoder.of(*made(name), False) for name in (source, target)]
    read = [noise(each, text, rng) for each in encoders]
    positions = explain_walk(*encoders, text, *read, 12)
    assert len(positions) == len(read[1].encoding.ids) - 1
    aligned = [position for position in positions if position.own is not None]
    assert len(aligned) >= len(positions) - 1
    for position in aligned:
        own = position.own
        assert own is not None
        masses = [own.mass, *(move.mass for move in position.movements)]
        assert sum(masses) + position.unsaid == pytest.approx(1, abs=1e-4)
        assert own.mass == pytest.approx(own.begun * np.prod(own.probs) * own.stays, rel=1e-4)
        to_label = sum(mass for move in position.movements for to, mass in move.targets if to == position.label)
        assert own.mass + to_label == pytest.approx(position.probability, abs=1e-4)
    assert walk_lines(positions, source, target)
