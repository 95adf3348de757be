"""Documents of a corpus, split by split: Parquet, JSONL or text behind any path, or a hub data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from operator import mul

from fusionx.contract.errors import DataError
from fusionx.precompute.config import CorpusConfig, Split
from fusionx.precompute.corpus.files import files_of
from fusionx.precompute.corpus.hub import HubSplit
from fusionx.precompute.corpus.rows import RowSource


@dataclass(frozen=True)
class Document:
    """One document. `doc_id` counts documents over all splits in their stated order."""

    doc_id: int
    split: Split
    domain: str
    text: str


def read_corpus(config: CorpusConfig) -> Iterator[Document]:
    """Every document of every configured split, in a fixed order.

    Raises:
        ConfigError: the corpus does not exist, or a column or split that the config names is not there.
        DataError: a file cannot be read, or the corpus holds no document.
    """
    doc_id = 0
    for split in config.splits:
        for text, domain in SplitReader(config, split):
            yield Document(doc_id, split_of_text(text, config, split), domain, text)
            doc_id += 1
    if doc_id == 0:
        raise DataError(
            "The corpus is empty.",
            file=config.path or config.dataset,
            field="corpus",
            found="0 documents",
            expected="at least one",
        )


class SplitReader:
    """Texts and domains of one split of the corpus, as its files or the hub divide it; `holdout` comes later.

    Iterate once. Raises as `read_corpus` does.
    """

    def __init__(self, config: CorpusConfig, split: Split) -> None:
        self._limit = config.limit.get(split)
        self._rows = 0
        self._finished = False
        self._sources: list[RowSource] = [HubSplit(config, split)] if config.dataset else files_of(config, split)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for row in islice(chain.from_iterable(self._sources), self._limit):
            self._rows += 1
            yield row
        self._finished = True

    @property
    def share(self) -> float | None:
        """How much of the split has been given out so far, None where nobody can tell.

        By the bytes of the files as stored, or by documents where their number is known. So a split of which N
        documents are this share holds about N / share.
        """
        if self._finished:
            return 1.0
        shares = [source.share for source in self._sources]
        sizes = [source.bytes for source in self._sources]
        read = None if None in shares else sum(map(mul, shares, sizes)) / max(sum(sizes), 1)
        return read if not self._limit else max(read or 0.0, self._rows / self._limit)


def split_of_text(text: str, config: CorpusConfig, split: Split) -> Split:
    """Assigns a training document by its hash when validation and test are shares of the training split."""
    if split != "train" or not config.holdout:
        return split
    draw = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    for held_out in ("validation", "test"):
        share = config.holdout.get(held_out, 0.0)
        if draw < share:
            return held_out
        draw -= share
    return "train"
