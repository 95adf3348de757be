"""A source that any tokenizer can have: bigrams counted on text, mixed with unigrams and an even share for all."""

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np

from fusionx.contract.shards.codec import Distributions
from fusionx.contract.shards.parts import Ragged
from fusionx.contract.tokens.encoder import Encoder

_BIGRAMS, _EVENLY = 0.75, 0.05


class Bigrams:
    """Counted once; `said` then gives the k best next tokens of any text, and the exact NLL of its own."""

    def __init__(self, encoder: Encoder, texts: list[str], share: float = _BIGRAMS, evenly: float = _EVENLY) -> None:
        self.encoder, self._share, self._evenly = encoder, share, evenly
        self._after: dict[int, Counter[int]] = defaultdict(Counter)
        self._alone: Counter[int] = Counter()
        for encoding in encoder.encode(texts):
            ids = encoding.ids.tolist()
            self._alone.update(ids[1:])
            for token, following in pairwise(ids):
                self._after[token][following] += 1
        self._seen = sum(self._alone.values())
        self._best: dict[tuple[int, int], tuple[list[int], list[float]]] = {}

    def prob(self, token: int, following: int) -> float:
        """Never less than an even share of `evenly`: no token that a source has read is impossible to it."""
        alone = (1 - self._evenly) * self._alone[following] / self._seen + self._evenly / self.encoder.vocab_size
        after = self._after[token]
        if not after:
            return alone
        return self._share * after[following] / after.total() + (1 - self._share) * alone

    def best(self, token: int, k: int) -> tuple[list[int], list[float]]:
        """The k most probable next tokens."""
        if (token, k) not in self._best:
            after = self._after[token]
            counted = [after] if after and self._share == 1.0 else [after, self._alone]
            likely = {known for counts in counted for known, _ in counts.most_common(4 * k)}
            best = sorted(((self.prob(token, known), known) for known in likely), reverse=True)[:k]
            self._best[token, k] = [known for _, known in best], [prob for prob, _ in best]
        return self._best[token, k]

    def sampled(self, tokens: int, generator: np.random.Generator) -> np.ndarray:
        """A text as this source would write it (`evenly` left out): int32 ids."""
        alone = list(self._alone.elements())
        after = {token: list(counts.elements()) for token, counts in self._after.items()}
        ids: list[int] = []
        while len(ids) < tokens:
            likely = after.get(ids[-1]) if ids and generator.random() < self._share else None
            likely = likely or alone
            ids.append(likely[generator.integers(len(likely))])
        return np.array(ids, np.int32)

    def said(self, texts: list[str], k: int) -> tuple[Ragged, Ragged, Distributions, np.ndarray]:
        """ids and ends of the texts, the k best at every position, and the NLL of the next tokens."""
        encodings = self.encoder.encode(texts)
        said, nll = self.said_of([one.ids for one in encodings], k)
        return ragged([one.ids for one in encodings]), ragged([one.ends for one in encodings]), said, nll

    def said_of(self, rows: list[np.ndarray], k: int) -> tuple[Distributions, np.ndarray]:
        """The same of texts that are tokens already."""
        ids, probs, counts, tails, nll = [], [], [], [], []
        for row in rows:
            own = row.tolist()
            for token, following in zip(own, [*own[1:], None], strict=True):
                best, of_best = self.best(token, k)
                ids += best
                probs += of_best
                counts.append(len(best))
                tails.append(max(1 - sum(of_best), 0.0))
                nll.append(0.0 if following is None else -np.log(self.prob(token, following)))
        said = Distributions(
            np.array(ids, np.int32),
            np.log(np.array(probs)).astype(np.float16),
            np.array(counts, np.uint16),
            np.array(tails, np.float16),
        )
        return said, np.array(nll)


def ragged(rows: list[np.ndarray]) -> Ragged:
    return Ragged(np.concatenate(rows), np.append(0, np.cumsum([len(row) for row in rows])))
