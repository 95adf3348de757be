"""The token that a model itself puts behind a document, read off what it said where documents end."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fusionx.contract.files.storage import join
from fusionx.contract.shards.codec import read_distributions, read_tokens
from fusionx.contract.shards.manifest import read_manifest
from fusionx.contract.shards.parts import read_part

_LEAST = 0.01
_LEAST_RATIO = 10.0
"""Its mean probability at the ends, and that over the mean elsewhere. A model that never met its end token gives it
about 1 / V everywhere; one that was trained with it some tenths at the ends and next to nothing elsewhere."""


@lru_cache(maxsize=64)
def document_end(logits: str, digest: str, special: frozenset[int]) -> int | None:
    """The id among `special` that the model expects at the end of documents, None where it expects none of them.

    Tokenizers do not say: the end token of an instruction-tuned model ends turns, and another one its texts.

    Args:
        logits: the folder of the model's own distributions; its first part of training text is looked at. digest: of
            its manifest, for the memory of this function.

    Raises:
        DataError: the shards are missing or damaged.
    """
    parts = read_manifest(logits, "logits", "precompute").parts_of("train")
    if not parts or not special:
        return None
    table, _ = read_part(join(logits, parts[0].name), "logits", sha256=parts[0].sha256)
    said, ids = read_distributions(table), read_tokens(table)[0]
    documents = table.column("doc_id").to_numpy()
    last = np.append(documents[1:] != documents[:-1], True)[: len(documents)] & (ids.lengths() > 0)
    at_end = np.zeros(len(said.counts), bool)
    at_end[ids.offsets[1:][last] - 1] = True
    position = np.repeat(np.arange(len(said.counts)), said.counts)
    among = np.isin(said.ids, list(special))
    found, probs = said.ids[among], np.exp(said.logprobs[among].astype(np.float64))
    ends = at_end[position[among]]
    size = max(special) + 1
    means = [
        np.bincount(found[chosen], probs[chosen], size) / max(count, 1)
        for chosen, count in ((ends, at_end.sum()), (~ends, (~at_end).sum()))
    ]
    best = int(means[0].argmax())
    return best if means[0][best] >= _LEAST and means[0][best] > _LEAST_RATIO * means[1][best] else None
