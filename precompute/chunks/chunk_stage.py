"""The chunk stage: documents in, parts of chunks out. One unit is a run of documents of one split."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from fusionx.contract.errors import DataError
from fusionx.contract.files.storage import join
from fusionx.contract.shards.parts import PartEntry, Provenance, differences, read_part, write_part
from fusionx.contract.shards.schema import CHUNKS, text_hash
from fusionx.contract.stage import Resources, Unit, Worker
from fusionx.contract.tokens.chat import CHAT, ChatEncoder, load_chat_encoder
from fusionx.contract.tokens.encoder import Encoder, load_encoder
from fusionx.precompute.chunks.answers import ANSWERS, AnswerChunker
from fusionx.precompute.chunks.chunker import Chunker, chunker_of
from fusionx.precompute.chunks.corpus_findings import special_spellings, spelled_in, why_skipped
from fusionx.precompute.config import SPLITS, ChunkConfig, CorpusConfig, ModelConfig
from fusionx.precompute.corpus.documents import Document, read_corpus
from fusionx.precompute.corpus.files import unread_files

_MOST_NAMED = 20
"""Skipped documents that a part names for each reason; all are counted."""


@dataclass(frozen=True)
class ChunkStage:
    """Cuts `corpus` so that every chunk fits `config.block_size` tokens under each of `models`' tokenizers.

    A chunk of a chat is a conversation up to one of its answers.
    """

    corpus: CorpusConfig
    config: ChunkConfig
    models: list[ModelConfig]
    output: str
    newcomers: tuple[str, ...] = ()
    """Models that may have joined after the cutting: a part that was cut without them is kept where its chunks fit."""

    name = "chunk"
    kind = "chunks"

    @property
    def resources(self) -> Resources:
        return Resources(workers=self.config.workers)

    @cached_property
    def _tokenizers(self) -> dict[str, str]:
        """Fingerprint of each model's tokenizer."""
        return {_key(m): self._encoder(m).fingerprint for m in self.models}

    def _encoder(self, model: ModelConfig) -> Encoder | ChatEncoder:
        if self.corpus.format == CHAT:
            return load_chat_encoder(model.id, model.path, model.revision, model.chat_template)
        return load_encoder(model.path, model.revision)

    def units(self) -> Iterator[Unit]:
        """Documents in order, gathered per split until a part is full."""
        waiting: dict[str, list[Document]] = {split: [] for split in SPLITS}
        sizes = dict.fromkeys(SPLITS, 0)
        index = 0
        for document in read_corpus(self.corpus):
            waiting[document.split].append(document)
            sizes[document.split] += len(document.text)
            if sizes[document.split] >= self.config.part_bytes:
                yield self._unit(index, waiting[document.split])
                index += 1
                waiting[document.split], sizes[document.split] = [], 0
        for split in SPLITS:
            if waiting[split]:
                yield self._unit(index, waiting[split])
                index += 1

    def _unit(self, index: int, documents: list[Document]) -> Unit:
        digest = hashlib.sha256()
        for document in documents:
            digest.update(f"{document.doc_id}\0{document.domain}\0{document.text}\0".encode("utf-8", "surrogatepass"))
        return Unit(index, documents[0].split, {}, {"documents": digest.hexdigest()}, payload=documents)

    def provenance(self, unit: Unit) -> Provenance:
        config: dict[str, Any] = {"block_size": self.config.block_size, "part_bytes": self.config.part_bytes}
        if self.corpus.format == CHAT:
            config["format"] = CHAT
        return Provenance(self.kind, unit.split, config, unit.hashes, self._tokenizers)

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        """Chunks stay valid when a source leaves, and when one joins under whose tokenizer they fit the block."""
        known = {key: value for key, value in self._tokenizers.items() if key in found.identity}
        kept = {key: value for key, value in found.identity.items() if key in self._tokenizers}
        changed = differences(_with_identity(found, kept), _with_identity(self.provenance(unit), known))
        return changed or self._too_long(found, unit)

    def _too_long(self, found: Provenance, unit: Unit) -> list[str]:
        """Newcomers under whose tokenizer a chunk of the part does not fit."""
        counted = {*found.identity.values()}
        joined = [m for m in self.models if m.id in self.newcomers and self._tokenizers[_key(m)] not in counted]
        if not joined:
            return []
        texts = read_part(join(self.output, unit.part), self.kind, ["text"])[0].column("text").to_pylist()
        try:
            longest = {_key(m): max(self._encoder(m).count(texts), default=0) for m in joined}
        except DataError as error:  # of a template that came later
            return [f"{error.details['field']}: found {error.details['found']}"]
        block = self.config.block_size
        return [
            f"{key}: found a chunk of {n} tokens, expected at most {block}" for key, n in longest.items() if n > block
        ]

    def worker(self) -> Worker:
        # One worker is one core; without this each would start a thread per core of the machine.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if self.corpus.format == CHAT:
            chats = [
                load_chat_encoder(model.id, model.path, model.revision, model.chat_template) for model in self.models
            ]
            return ChunkWorker(self, AnswerChunker(chats, self.config.block_size), frozenset())
        encoders = [load_encoder(model.path, model.revision) for model in self.models]
        return ChunkWorker(self, chunker_of(encoders, self.config.block_size), special_spellings(encoders))


@dataclass(frozen=True)
class ChunkWorker:
    stage: ChunkStage
    chunker: Chunker | AnswerChunker
    special: frozenset[str]

    def __call__(self, unit: Unit) -> PartEntry:
        rows: dict[str, list] = {name: [] for name in CHUNKS.names}
        skipped: dict[str, list[int]] = {}
        spelled: Counter[str] = Counter()
        answers: Counter[str] = Counter()
        for document in unit.payload:
            reason = why_skipped(document.text)
            if reason is not None:
                skipped.setdefault(reason, []).append(document.doc_id)
                continue
            if isinstance(self.chunker, AnswerChunker):
                texts, found = self.chunker.cut(document.text)
                answers += found
                if not found[ANSWERS]:
                    skipped.setdefault("no answer", []).append(document.doc_id)
            else:
                spelled += spelled_in(document.text, self.special)
                texts = self.chunker.cut(document.text)
            for number, text in enumerate(texts):
                row = (document.doc_id, number, text_hash(text), document.domain, text)
                for name, value in zip(CHUNKS.names, row, strict=True):
                    rows[name].append(value)
        table = pa.table(rows, schema=CHUNKS)
        stats: dict[str, Any] = {
            "documents": len(unit.payload),
            "skipped": {reason: len(doc_ids) for reason, doc_ids in skipped.items()},
            "skipped_doc_ids": {reason: doc_ids[:_MOST_NAMED] for reason, doc_ids in skipped.items()},
        }
        if spelled:
            stats["special_tokens"] = dict(spelled)
        if answers:
            stats["answers"] = dict(answers)
        unread = unread_files(self.stage.corpus) if unit.index == 0 else {}
        if unread:
            stats["unread_files"] = unread
        path = join(self.stage.output, unit.part)
        return write_part(path, table, self.stage.provenance(unit), tokens=0, stats=stats)


def _key(model: ModelConfig) -> str:
    return f"tokenizer.{model.id}"


def _with_identity(provenance: Provenance, identity: dict[str, str]) -> Provenance:
    return Provenance(
        provenance.kind,
        provenance.split,
        provenance.config,
        provenance.inputs,
        identity,
        provenance.schema_version,
    )
