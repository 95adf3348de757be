"""What a source foretells blind, in languages so small that every text with the same past can be counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import Language, View, bpe, exact, longest_match, neighbours

from fusionx.align.walk.lexicon import Lexicon
from fusionx.align.walk.part import PartWalk
from fusionx.contract.tokens.encoder import Encoder

PIECES = st.lists(st.text("ab", min_size=2, max_size=4), min_size=1, max_size=6)


def walk_of(source: View, target: View) -> PartWalk:
    said, nll = source.said()
    lexicon = Lexicon(source.encoder, target.encoder)
    return PartWalk(lexicon, target.ids, target.ends, source.ids, source.ends, said, nll)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), PIECES, st.data())
def test_where_the_source_decides_the_walk_needs_no_look(seed: int, source: list[str], data: st.DataObject) -> None:
    """Every token of the target is one of the source's: at a common boundary the next source token tells which."""
    pieces = data.draw(st.lists(st.sampled_from(source), unique=True))
    language = Language.over("ab", 6, np.random.default_rng(seed))
    views = View(language, longest_match(source, "ab")), View(language, longest_match(pieces, "ab"))
    part = walk_of(*views)
    foretold, walked = part.foretold(exact(views[1])), part.distributions(exact(views[1]), 64)
    starts = np.append(0, np.cumsum(walked.counts, dtype=np.int64))
    compared = 0
    for (first, last), (begin, end) in zip(neighbours(views[1].ids), neighbours(views[0].ids), strict=True):
        source_ends = views[0].ends.values[begin:end]
        for position in range(first, last - 1):
            probs = walked.probs[starts[position] : starts[position + 1]]
            alone = len(probs) < 2 or probs[0] - probs[1] > 1e-3
            if alone and views[1].ends.values[position] in source_ends:
                compared += 1
                assert foretold[position] == walked.ids[starts[position]]
    assert compared > 20


@pytest.mark.parametrize("encoder", [bpe([("a", "b"), ("ab", "b"), ("b", "a")], "ab"), longest_match(["ba"], "ab")])
def test_equal_tokenizers_foretell_what_the_source_does(encoder: Encoder) -> None:
    view = View(Language.over("ab", 6, np.random.default_rng(3)), encoder)
    said, _ = view.said()
    foretold = walk_of(view, view).foretold(None)
    likely = [said.ids[start] if count else -1 for start, count in zip(said.starts[:-1], said.counts, strict=True)]
    inner = [position for first, last in neighbours(view.ids) for position in range(first, last - 1)]
    surely = [at for at in inner if said.counts[at] and said.logprobs[said.starts[at]] > np.log(0.51)]
    assert len(surely) > 100
    assert [foretold[at] for at in surely] == [likely[at] for at in surely]


def test_it_does_not_know_that_a_token_goes_on_as_the_text_does() -> None:
    """By hand. Source a, b; target a, b, ab. Of the source's a (.55) nobody says how it goes on: half of it is ab."""
    language = Language(["aa", "ab", "ba", "bb"], np.array([0.05, 0.5, 0.2, 0.25]))
    views = View(language, longest_match([], "ab")), View(language, longest_match(["ab"], "ab"))
    part, table = walk_of(*views), views[1].encoder.table
    walked, blind = part.distributions(None, 8), part.foretold(None)
    starts = np.append(0, np.cumsum(walked.counts, dtype=np.int64))
    first = neighbours(views[1].ids)[1][0]  # of the text ab
    assert table.token_bytes[walked.ids[starts[first]]] == b"ab", "following the text: .5"
    assert table.token_bytes[blind[first]] == b"b", ".45, against .275 each"
    informed = part.foretold(exact(views[1]))
    assert table.token_bytes[informed[first]] == b"ab", "the target itself knows that ab is ten times as likely as a"


def test_inside_a_source_token_the_others_that_agree_have_their_say() -> None:
    """By hand. Source aab, aaa, a, b; target a, b. After one a the source's own token is one of two that agree."""
    language = Language(["aab", "aaa"], np.array([0.4, 0.6]))
    views = View(language, longest_match(["aab", "aaa"], "ab")), View(language, longest_match([], "ab"))
    part, table = walk_of(*views), views[1].encoder.table
    foretold = part.foretold(None)
    for text, (first, last) in enumerate(neighbours(views[1].ids)):
        said = [table.token_bytes[foretold[at]] for at in range(first, last - 1)]
        assert said == [b"a", b"a", b"a"], language.texts[text]
    walked = part.distributions(None, 8)
    starts = np.append(0, np.cumsum(walked.counts, dtype=np.int64))
    last = neighbours(views[1].ids)[0][1] - 2
    assert walked.probs[starts[last]] == pytest.approx(0.6, abs=2e-3), "the text's own b has the other .4"
