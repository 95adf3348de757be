"""Some documents of a corpus, split by split, and how much more text the corpus has."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.tokens.chat import CHAT, messages_of
from fusionx.pipelines.config import FusionConfig
from fusionx.precompute.config import SPLITS, CorpusConfig, Split
from fusionx.precompute.corpus.documents import Document, SplitReader, split_of_text

_READ_BYTES = 64_000_000
"""Text read of each split; a corpus with more is judged by the share of its files that this was."""
_SEED = 0


@dataclass(frozen=True)
class SampledSplit:
    """The sampled documents of one split; the corpus holds `scale` times as much text of it."""

    sampled: list[Document]
    scale: float
    exact: bool

    @property
    def documents(self) -> int:
        return len(self.sampled)

    @property
    def bytes(self) -> int:
        return sum(map(_size, self.sampled))


def take_sample(config: CorpusConfig, documents: int, longest: int) -> dict[str, SampledSplit]:
    """About `documents` documents, dealt to the splits by their text; at least one of every split that has any.

    longest: characters; of a longer document only its beginning is taken, of a conversation all.
    """
    read: defaultdict[str, list[Document]] = defaultdict(list)
    corpus_bytes: defaultdict[str, float] = defaultdict(float)
    exact = True
    for split in config.splits:
        rows, share = _read_some(config, split)
        exact = exact and share == 1.0
        for document in rows:
            read[document.split].append(document)
            corpus_bytes[document.split] += _size(document) / share
    if not read:
        raise DataError("The corpus is empty.", file=config.path or config.dataset, field="corpus")
    total = sum(map(len, read.values()))
    rng = random.Random(_SEED)
    sample = {}
    for name, rows in read.items():
        chosen = rng.sample(rows, min(len(rows), math.ceil(documents * len(rows) / total)))
        if config.format != CHAT:
            chosen = [replace(document, text=document.text[:longest]) for document in chosen]
        sample[name] = SampledSplit(chosen, corpus_bytes[name] / max(1, sum(map(_size, chosen))), exact)
    return sample


def _read_some(config: CorpusConfig, split: Split) -> tuple[list[Document], float]:
    """The first documents of one split of the files, and which share of it they are."""
    reader = SplitReader(config, split)
    rows: list[Document] = []
    size = 0
    for text, domain in reader:
        rows.append(Document(len(rows), split_of_text(text, config, split), domain, text))
        size += _size(rows[-1])
        if size >= _READ_BYTES:
            break
    else:
        return rows, 1.0
    if reader.share is None:
        raise ConfigError(
            "Nobody can tell how large this corpus is.",
            field="corpus",
            found=f"{config.dataset} [{split}], which states no number of documents",
            remedy="set corpus.limit to the documents that you want of this split",
        )
    return rows, reader.share


def _size(document: Document) -> int:
    return len(document.text.encode("utf-8", "surrogatepass"))


def sample_config(config: FusionConfig, sample: dict[str, SampledSplit], folder: str, part_bytes: int) -> FusionConfig:
    """The same run over the sample, which is written to `folder` as JSON lines; parts of at most `part_bytes`."""
    corpus = Path(folder) / "corpus"
    corpus.mkdir()
    for name, split in sample.items():
        is_chat = config.corpus.format == CHAT
        column, content = ("messages", messages_of) if is_chat else ("text", str)
        rows = [{column: content(document.text), "domain": document.domain} for document in split.sampled]
        (corpus / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    here = CorpusConfig(
        path=str(corpus),
        format=config.corpus.format,
        domain="domain",
        splits=[name for name in SPLITS if name in sample],
    )
    chunk = config.chunk.model_copy(update={"part_bytes": min(part_bytes, config.chunk.part_bytes)})
    return config.model_copy(update={"corpus": here, "output": folder, "chunk": chunk})
