"""A language small enough to be enumerated: every text's probability, and what a model of it says under any tokenizer.

All texts have one length. A tokenizer's model is perfect and canonical: it gives every next token the probability of
all texts whose tokens go on so, given the tokens so far.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product

import numpy as np
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fusionx.align.walk.state import Said
from fusionx.contract.shards.codec import Distributions
from fusionx.contract.shards.parts import Ragged
from fusionx.contract.tokens.encoder import Encoder
from fusionx.contract.tokens.token_table import token_table

BOS = "<s>"


class LongestMatch:
    """A tokenizer that takes the longest token each time: what it writes depends on nothing but what comes next.

    As much of a slow tokenizer of transformers as `contract.tokens` asks for.
    """

    backend = "none"
    bos_token_id = 0
    all_special_ids = (0,)

    def __init__(self, pieces: list[str]) -> None:
        self._vocab = {piece: token for token, piece in enumerate([BOS, *pieces])}

    def get_vocab(self) -> dict[str, int]:
        return dict(self._vocab)

    def encode(self, text: str, **_: object) -> list[int]:
        ids, rest = [], text
        while rest:
            size = next((size for size in range(len(rest), 0, -1) if rest[:size] in self._vocab), 0)
            if size:
                ids.append(self._vocab[rest[:size]])
            rest = rest[max(size, 1) :]
        return ids

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [0] * add_special_tokens + self.encode(text)}


def longest_match(pieces: list[str], alphabet: str) -> Encoder:
    """`pieces` beside the characters of `alphabet` and the line break that a tokenizer is asked behind."""
    tokenizer = LongestMatch(list(dict.fromkeys(["\n", *alphabet, *pieces])))
    return Encoder.of(tokenizer, token_table(tokenizer), add_bos=True)


def bpe(merges: list[tuple[str, str]], alphabet: str) -> Encoder:
    """Byte pair encoding over the same characters."""
    pieces = [BOS, "\n", *alphabet, *dict.fromkeys(left + right for left, right in merges)]
    vocab = {piece: token for token, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, merges)), bos_token=BOS)
    return Encoder.of(tokenizer, token_table(tokenizer), add_bos=True)


@dataclass(frozen=True)
class Language:
    """Texts and their probabilities, which sum to 1."""

    texts: list[str]
    probs: np.ndarray

    @classmethod
    def over(cls, alphabet: str, length: int, generator: np.random.Generator, concentration: float = 0.3) -> "Language":
        texts = ["".join(chars) for chars in product(alphabet, repeat=length)]
        return cls(texts, generator.dirichlet(np.full(len(texts), concentration)))


class View:
    """A language through a tokenizer."""

    def __init__(self, language: Language, encoder: Encoder) -> None:
        self.language, self.encoder = language, encoder
        self.encodings = encoder.encode(language.texts)
        mass: dict[tuple[int, ...], float] = defaultdict(float)
        self.following: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for encoding, prob in zip(self.encodings, language.probs, strict=True):
            ids = tuple(encoding.ids.tolist())
            for size in range(1, len(ids) + 1):
                mass[ids[:size]] += float(prob)
                if size < len(ids):
                    self.following[ids[:size]].add(ids[size])
        self.mass = mass

    def next_tokens(self, past: tuple[int, ...]) -> dict[int, float]:
        """The true distribution of the next token."""
        return {
            token: self.mass[(*past, token)] / self.mass[past] for token in self.following[past] if self.mass[past] > 0
        }

    @cached_property
    def ids(self) -> Ragged:
        return _ragged([encoding.ids for encoding in self.encodings])

    @cached_property
    def ends(self) -> Ragged:
        return _ragged([encoding.ends for encoding in self.encodings])

    def said(self, k: int | None = None) -> tuple[Distributions, np.ndarray]:
        """The model's k best at every position of every text (all, by default), and the NLL of its next tokens."""
        ids, logprobs, counts, tails, nll = [], [], [], [], []
        for encoding in self.encodings:
            past = tuple(encoding.ids.tolist())
            for size in range(1, len(past) + 1):
                found = sorted(self.next_tokens(past[:size]).items(), key=lambda item: (-item[1], item[0]))
                found = [(token, prob) for token, prob in found if prob > 1e-20]
                kept = found if k is None else found[:k]
                ids += [token for token, _ in kept]
                logprobs += [np.log(prob) for _, prob in kept]
                counts.append(len(kept))
                tails.append(sum(prob for _, prob in found[len(kept) :]) if found else 1.0)
                label = dict(found).get(past[size], 1e-20) if size < len(past) else 1.0
                nll.append(-np.log(label))
        said = Distributions(
            np.array(ids, np.int32),
            np.array(logprobs, np.float16),
            np.array(counts, np.uint16),
            np.array(tails, np.float16),
        )
        return said, np.array(nll, np.float32)


def exact(view: View) -> Said:
    """The model's distributions without rounding, as the walk's kernel reads them."""
    said, _ = view.said()
    probs = []
    for encoding in view.encodings:
        past = tuple(encoding.ids.tolist())
        for size in range(1, len(past) + 1):
            probs += sorted((prob for prob in view.next_tokens(past[:size]).values() if prob > 1e-20), reverse=True)
    return Said(said.starts, said.ids.view(np.uint32), np.array(probs, np.float32), np.zeros(len(said), np.float32))


def _ragged(rows: list[np.ndarray]) -> Ragged:
    return Ragged(np.concatenate(rows), np.append(0, np.cumsum([len(row) for row in rows])))


def neighbours(rows: Ragged) -> list[tuple[int, int]]:
    """Where each row begins and ends."""
    return list(pairwise(rows.offsets.tolist()))
