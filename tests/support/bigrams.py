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

    def __init__(self, encoder: Encoder, texts: list[str]) -> None:
        self.encoder = encoder
        self._after: dict[int, Counter[int]] = defaultdict(Counter)
        self._alone: Counter[int] = Counter()
        for encoding in encoder.encode(texts):
            ids = encoding.ids.tolist()
            self._alone.update(ids[1:])
            for token, following in pairwise(ids):
                self._after[token][following] += 1
        self._seen = sum(self._alone.values())

    def prob(self, token: int, following: int) -> float:
        """Never less than an even share of a twentieth: no token that a source has read is impossible to it."""
        alone = (1 - _EVENLY) * self._alone[following] / self._seen + _EVENLY / self.encoder.vocab_size
        after = self._after[token]
        if not after:
            return alone
        return _BIGRAMS * after[following] / after.total() + (1 - _BIGRAMS) * alone

    def said(self, texts: list[str], k: int) -> tuple[Ragged, Ragged, Distributions, np.ndarray]:
        """ids and ends of the texts, the k best at every position, and the NLL of the next tokens."""
        encodings = self.encoder.encode(texts)
        common = [token for token, _ in self._alone.most_common(4 * k)]
        ids, probs, tails, nll = [], [], [], []
        for encoding in encodings:
            own = encoding.ids.tolist()
            for token, following in zip(own, [*own[1:], None], strict=True):
                likely = {*(known for known, _ in self._after[token].most_common(4 * k)), *common}
                best = sorted(((self.prob(token, known), known) for known in likely), reverse=True)[:k]
                ids.append([known for _, known in best])
                probs.append([prob for prob, _ in best])
                tails.append(1 - sum(probs[-1]))
                nll.append(0.0 if following is None else -np.log(self.prob(token, following)))
        counts = np.full(len(ids), k)
        said = Distributions.from_padded(np.array(ids), np.log(np.array(probs, np.float32)), counts, np.array(tails))
        return ragged([one.ids for one in encodings]), ragged([one.ends for one in encodings]), said, np.array(nll)


def ragged(rows: list[np.ndarray]) -> Ragged:
    return Ragged(np.concatenate(rows), np.append(0, np.cumsum([len(row) for row in rows])))
