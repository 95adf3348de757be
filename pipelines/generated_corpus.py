"""The corpus with what the sources wrote: who writes about what, and one folder with all of it.

Validation and test text are the corpus's own, and training text keeps what it had, so that a run over the larger corpus
is judged as the first one is.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fusionx.align.fidelity import held_out
from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.atomic_folder import atomic_folder
from fusionx.contract.files.storage import is_local, join, plain, write_bytes
from fusionx.contract.shards.manifest import read_manifest
from fusionx.contract.shards.parts import read_part
from fusionx.contract.shards.schema import text_hash
from fusionx.pipelines.config import FusionConfig
from fusionx.pipelines.layout import Layout
from fusionx.precompute.config import SPLITS
from fusionx.precompute.corpus.documents import read_corpus
from fusionx.precompute.generation.generate_stage import GenerateStage

_FILE_BYTES = 64_000_000
"""Of text in one file."""
_OWN = "corpus"
"""Origin of the documents that were there before."""


@dataclass(frozen=True)
class GeneratedCorpus:
    """Where it lies, and documents and bytes of the training text by origin."""

    folder: str
    documents: dict[str, int]
    bytes: dict[str, int]

    def __str__(self) -> str:
        lines = [
            f"{origin:<24} {self.documents[origin]:>9,} documents {self.bytes[origin] / 1e6:>10,.2f} MB"
            for origin in self.documents
        ]
        how = f"corpus={{path: {self.folder}, domain: domain}}"
        return "\n".join([*lines, "", self.folder, f"fusionx run CONFIG.yaml --set '{how}' --set output=..."])


def best_sources(config: FusionConfig, layout: Layout) -> dict[str, tuple[str, ...]]:
    """Source -> the domains in which it has the fewest bits per byte of all candidates, on held-out text.

    Domains that the target itself knows best are nobody's: there is nothing to be learned.

    Raises:
        ConfigError: the corpus is of conversations, or `output` is no local folder.
        DataError: a source is not aligned yet, or no source is better than the target anywhere.
    """
    if config.corpus.format != "text":
        raise ConfigError(
            "Sources go on from texts, not from conversations.",
            field="corpus.format",
            found=config.corpus.format,
            expected="text",
        )
    if not is_local(layout.root):
        raise ConfigError(
            "A generated corpus cannot be written to an object store.",
            field="output",
            found=layout.root,
            expected="a local folder: a corpus appears whole or not at all",
            remedy="copy chunks and aligned to such a folder and set output to it",
        )
    known: dict[str, dict[str, float]] = defaultdict(dict)
    for model in config.models:
        folder = layout.aligned(config.target.id, config.align.methods[0], model.id)
        _, stats = held_out(read_manifest(folder, "aligned", "align"))
        for domain, sums in stats.get("fidelity", {}).items():
            if sums["own_bytes"] > 0:
                known[domain][model.id] = sums["own_nll"] / sums["own_bytes"]
    best = {domain: min(of, key=lambda name: of[name]) for domain, of in known.items()}
    found: dict[str, list[str]] = defaultdict(list)
    for domain, name in sorted(best.items()):
        if name != config.target.id:
            found[name].append(domain)
    if not found:
        raise DataError(
            "No source knows a domain better than the target does.",
            file=layout.aligned(config.target.id, config.align.methods[0], ""),
            found=", ".join(sorted(best)) or "no held-out text",
            remedy="take other sources; `fusionx status` says what each knows",
        )
    return {name: tuple(domains) for name, domains in found.items()}


def write_corpus(config: FusionConfig, layout: Layout, stages: Sequence[GenerateStage]) -> GeneratedCorpus:
    """Every document of the corpus, and every text that was written and stands nowhere else yet; all or nothing."""
    with atomic_folder(Path(plain(layout.generated_corpus))) as folder:
        documents, sizes = _write(config, stages, str(folder))
    return GeneratedCorpus(layout.generated_corpus, documents, sizes)


def _write(config: FusionConfig, stages: Sequence[GenerateStage], folder: str) -> tuple[dict[str, int], dict[str, int]]:
    """Documents and bytes of the training text by origin."""
    held_back: set[str] = set()
    writers = {split: _Writer(join(folder, split)) for split in SPLITS}
    documents, sizes = Counter[str](), Counter[str]()
    for document in read_corpus(config.corpus):
        if not _is_unicode(document.text):
            continue  # `chunk` leaves it out, too, and says so
        writers[document.split].add(document.text, document.domain, _OWN)
        held_back.add(text_hash(document.text))
        if document.split == "train":
            documents[_OWN] += 1
            sizes[_OWN] += len(document.text.encode())
    for stage in stages:
        for text, domain in _written(stage):
            key = text_hash(text)
            if key not in held_back:
                held_back.add(key)
                writers["train"].add(text, domain, stage.model.id)
                documents[stage.model.id] += 1
                sizes[stage.model.id] += len(text.encode())
    for writer in writers.values():
        writer.flush()
    return dict(documents), dict(sizes)


def _written(stage: GenerateStage) -> Iterator[tuple[str, str]]:
    manifest = read_manifest(stage.output, "generated", "generate")
    for part in manifest.parts:
        table, _ = read_part(join(stage.output, part.name), "generated", ["text", "domain"], part.sha256)
        yield from zip(table.column("text").to_pylist(), table.column("domain").to_pylist(), strict=True)


class _Writer:
    """Parquet files of one split."""

    def __init__(self, folder: str) -> None:
        self._folder, self._files, self._bytes = folder, 0, 0
        self._rows: list[dict[str, str]] = []

    def add(self, text: str, domain: str, origin: str) -> None:
        self._rows.append({"text": text, "domain": domain, "origin": origin})
        self._bytes += len(text)
        if self._bytes >= _FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(self._rows), buffer, compression="zstd")
            write_bytes(join(self._folder, f"part-{self._files:05d}.parquet"), buffer.getvalue())
            self._files, self._bytes, self._rows = self._files + 1, 0, []


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
