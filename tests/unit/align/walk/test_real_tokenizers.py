"""The walk between real tokenizers, and of every kind of tokenizer onto itself; the sources are counted bigrams."""

from functools import cache

import numpy as np
import pytest
from bigrams import Bigrams, ragged
from real_texts import encoder, texts
from tokenizer_builder import CORPUS, MAKERS

from fusionx.align.walk.lexicon import Lexicon
from fusionx.align.walk.part import PartWalk, spoken
from fusionx.contract.shards.next_token import next_tokens

HELD_OUT = 4
PAIRS = [
    ("llama3", "mistral"),
    ("mistral", "tekken"),
    ("tekken", "llama3"),
    ("unigram", "byte-level"),
    ("sentencepiece", "unigram"),
    ("wordpiece", "mistral"),
    ("byte-level-nfc", "gemma"),
]


@cache
def lexicon(source: str, target: str) -> Lexicon:
    """Once for all texts: it takes longer than they do."""
    return Lexicon(encoder(source), encoder(target))


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("domain", ["prose", "code", "scripts"])
def test_the_text_costs_what_it_costs_the_source(source: str, target: str, domain: str) -> None:
    one, other = encoder(source), encoder(target)
    learned, held_out = texts(domain)[:-HELD_OUT], texts(domain)[-HELD_OUT:]
    model = Bigrams(one, learned)
    encodings = other.encode(held_out)
    target_ids, target_ends = ragged([e.ids for e in encodings]), ragged([e.ends for e in encodings])
    labels, sizes = next_tokens(target_ids, target_ends)
    first = target_ends.values[target_ends.offsets[:-1]]
    for k, most in ((32, 0.01), (10, 0.03)):
        source_ids, source_ends, said, nll = model.said(held_out, k)
        part = PartWalk(lexicon(source, target), target_ids, target_ends, source_ids, source_ends, said, nll)
        walked = part.distributions(None, k)
        judged = (labels >= 0) & np.isfinite(walked.label)
        _, own_sizes = next_tokens(source_ids, source_ends)
        counted = (own_sizes > 0) & (source_ends.values >= np.repeat(first, source_ids.lengths()))
        own = nll[counted].sum() / own_sizes[counted].sum() / np.log(2)
        aligned = -np.log(walked.label[judged]).sum() / sizes[judged].sum() / np.log(2)
        assert -0.01 < aligned - own < most
        assert judged.sum() / ((labels >= 0) & (sizes > 0)).sum() > 0.99


@pytest.mark.parametrize("name", MAKERS)
def test_a_tokenizer_onto_itself_is_the_identity(name: str) -> None:
    own = encoder(name)
    model = Bigrams(own, CORPUS)
    ids, ends, said, nll = model.said(CORPUS[:4], 8)
    walked = PartWalk(Lexicon(own, own), ids, ends, ids, ends, said, nll).distributions(None, 9)
    source = spoken(said, own.vocab_size)
    labels, sizes = next_tokens(ids, ends)
    starts = np.append(0, np.cumsum(walked.counts, dtype=np.int64))
    compared = 0
    for position in np.flatnonzero((labels >= 0) & (sizes > 0) & (walked.counts > 0)).tolist():
        here = slice(starts[position], starts[position + 1])
        there = slice(source.starts[position], source.starts[position + 1])
        found = dict(zip(walked.ids[here].tolist(), walked.probs[here].tolist(), strict=True))
        given = dict(zip(source.ids[there].tolist(), source.probs[there].tolist(), strict=True))
        given[int(labels[position])] = given.get(int(labels[position]), float(np.exp(-nll[position])))
        kept = dict(sorted(given.items(), key=lambda entry: -entry[1])[:9])
        assert found == pytest.approx(kept, rel=2e-3, abs=1e-7)
        compared += 1
    assert compared > 20
