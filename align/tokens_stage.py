"""The target's own tokens for every chunk, written once and shared by all sources. One unit is one part of chunks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from fusionx.contract.files.storage import join
from fusionx.contract.shards.codec import add_context, add_tokens
from fusionx.contract.shards.manifest import Manifest, read_manifest
from fusionx.contract.shards.parts import PartEntry, Provenance, differences, read_part, write_part
from fusionx.contract.stage import Resources, Unit, Worker, units_of_chunks
from fusionx.contract.tokens.chat import CHAT, ChatEncoder, load_chat_encoder
from fusionx.contract.tokens.encoder import Encoder, load_encoder


@dataclass(frozen=True)
class TokensStage:
    """Encodes the chunks of `splits` with the target's tokenizer."""

    target: str
    path: str
    revision: str | None
    splits: list[str]
    chunks: str
    output: str
    workers: int = 1
    chat_template: str | None = None
    """In place of the tokenizer's own, where chunks are conversations."""

    kind = "tokens"
    name = "align/tokens"

    @property
    def resources(self) -> Resources:
        return Resources(workers=self.workers)

    @cached_property
    def _chunks(self) -> Manifest:
        return read_manifest(self.chunks, "chunks", "chunk")

    @cached_property
    def _identity(self) -> dict[str, str]:
        identity = {"target": self.target, "fingerprint": load_encoder(self.path, self.revision).fingerprint}
        return identity | ({"chat": self._encoder.fingerprint} if isinstance(self._encoder, ChatEncoder) else {})

    @cached_property
    def _encoder(self) -> Encoder | ChatEncoder:
        """What reads the chunks."""
        if self._chunks.config.get("format") == CHAT:
            return load_chat_encoder(self.target, self.path, self.revision, self.chat_template)
        return load_encoder(self.path, self.revision)

    def units(self) -> list[Unit]:
        return units_of_chunks(self.chunks, self._chunks, self.splits)

    def provenance(self, unit: Unit) -> Provenance:
        return Provenance(self.kind, unit.split, {}, unit.hashes, self._identity)

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        return differences(found, self.provenance(unit))

    def worker(self) -> Worker:
        return TokensWorker(self, self._encoder)


@dataclass(frozen=True)
class TokensWorker:
    stage: TokensStage
    encoder: Encoder | ChatEncoder

    def __call__(self, unit: Unit) -> PartEntry:
        chunks, _ = read_part(unit.inputs["chunks"], "chunks", sha256=unit.hashes["chunks"])
        whole = self.encoder.encode(chunks.column("text").to_pylist())
        encodings = [encoding.read for encoding in whole]
        table = chunks.select(["doc_id", "chunk", "text_hash", "domain"]).replace_schema_metadata(None)
        table = add_tokens(table, [encoding.ids for encoding in encodings], [encoding.ends for encoding in encodings])
        if isinstance(self.encoder, ChatEncoder):
            table = add_context(table, [encoding.ids[: encoding.context] for encoding in whole])
        tokens = sum(len(encoding.ids) for encoding in encodings)
        stats = {
            "lossy_chunks": sum(encoding.lossy for encoding in encodings),
            "domains": dict(Counter(chunks.column("domain").to_pylist())),
        }
        return write_part(join(self.stage.output, unit.part), table, self.stage.provenance(unit), tokens, stats)
