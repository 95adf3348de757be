"""How often tokens of 1, 2, ... bytes are expected and come: of sources that are right about a text, and of others."""

from collections import defaultdict

import numpy as np
import pytest
from bigrams import Bigrams, ragged
from real_texts import encoder, texts
from tiny_language import Language, View, longest_match

from fusionx.align.fidelity import calibration
from fusionx.align.walk.lexicon import Lexicon
from fusionx.align.walk.part import PartWalk, spoken
from fusionx.align.walk.written import FOLLOWING, Writer
from fusionx.contract.shards.next_token import next_tokens

TEXTS, TOKENS, K = 20, 1000, 300
"""So many entries that next to nothing is in the tail, of which no length is known."""
LENGTHS = (1, 2, 3, 4, 7, 8)
"""Bytes. The last three are those of indentation; other long tokens are too rare here for a figure."""


def test_tokens_of_every_length_come_as_often_as_a_source_that_wrote_the_text_expects() -> None:
    """Indented code, of a source that leaves white space's last character to the word, for a target that does not."""
    source, target = encoder("tekken"), encoder("mistral")
    model = Bigrams(source, texts("code"), share=1.0, evenly=0.0)
    generator = np.random.default_rng(0)
    rows = [model.sampled(TOKENS, generator) for _ in range(TEXTS)]
    source_ends = ragged([np.cumsum(source.table.byte_lengths[row]).astype(np.int32) for row in rows])
    written = [source.table.joined(row.tolist()).decode() for row in rows]
    encodings = target.encode(written)
    target_ids, target_ends = ragged([e.ids for e in encodings]), ragged([e.ends for e in encodings])
    said, nll = model.said_of(rows, K)
    part = PartWalk(Lexicon(source, target), target_ids, target_ends, ragged(rows), source_ends, said, nll)
    expected, _ = Bigrams(target, written).said_of([e.ids for e in encodings], 32)
    walked = part.distributions(spoken(expected, target.vocab_size), K)
    labels, _ = next_tokens(target_ids, target_ends)
    judged = (labels >= 0) & np.isfinite(walked.label)
    by_length = calibration(walked.stored(), walked.probs, judged, labels, target.table.byte_lengths)
    for size in LENGTHS:
        given, found = by_length[str(size)].values()
        assert abs(given / found - 1) < 0.05 + 2 / np.sqrt(found)  # what is found is chance


@pytest.mark.parametrize(
    ("source", "target", "piece", "written"),
    [
        ("mistral", "llama3", b"    ", [b"   ", b" "]),
        ("tekken", "mistral", b"   ", [b"    "]),
        ("tekken", "mistral", b"\n\n", [b"\n", b"\n"]),
        ("llama3", "tekken", b"    ", [b"    "]),
        ("llama3", "tekken", b" ", [b" "]),
    ],
)
def test_white_space_is_written_by_what_the_source_has_behind_it(
    source: str, target: str, piece: bytes, written: list[bytes]
) -> None:
    """llama3 and tekken leave the last of some spaces to the word, mistral none of four."""
    one, other = encoder(source), encoder(target)
    followed_by = Writer(one).follows_white_space()[one.table.by_bytes[piece]]
    writer = Writer(other)
    rows = writer.written_before([piece], FOLLOWING[followed_by]) if followed_by else writer.written([piece])
    assert [other.table.token_bytes[token] for token in rows.row(0).tolist()] == written


def test_what_a_source_is_wrong_about_need_not_be_the_same_by_length_in_another_s_tokens() -> None:
    """By counting. Of the language's own texts both tokenizers' lengths are as expected; of other texts they are off,
    and the true expectation over the target's tokens is not off as the source's tokens are."""
    generator = np.random.default_rng(1)
    language, other = (Language.over("ab", 6, generator, concentration=0.3) for _ in range(2))
    pieces = ["ab", "aab", "ba", "abba"], ["ab", "ba", "bb"]
    source, target = (View(language, longest_match(of_view, "ab")) for of_view in pieces)
    for view in (source, target):
        assert all(ratio == pytest.approx(1.0) for ratio in _by_length(view, language.probs).values())
    own, exact = (_by_length(view, other.probs) for view in (source, target))
    assert max(abs(exact[size] / own[size] - 1) for size in own.keys() & exact.keys()) > 0.05


def _by_length(view: View, weights: np.ndarray) -> dict[int, float]:
    """Of texts that come with other probabilities: what the view's true distributions give to each length, over how
    often it comes."""
    given, found = defaultdict(float), defaultdict(float)
    lengths = view.encoder.table.byte_lengths
    for encoding, weight in zip(view.encodings, weights, strict=True):
        past = tuple(encoding.ids.tolist())
        for size in range(1, len(past)):
            found[int(lengths[past[size]])] += weight
            for token, prob in view.next_tokens(past[:size]).items():
                given[int(lengths[token])] += weight * prob
    return {size: given[size] / found[size] for size in sorted(found)}
