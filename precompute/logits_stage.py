"""The precompute stage: one source's top-k distributions for every chunk. One unit is one part of chunks.

Batches are formed inside a unit, by length, so that a part's bytes depend on the unit and never on who computed it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from contract.encoder import Encoder, load_encoder
from contract.errors import ConfigError, DataError
from contract.manifest import Manifest, read_manifest
from contract.schema import LOGITS
from contract.shard import PartEntry, Provenance, differences, list_column, read_part, write_part
from contract.stage import Resources, Unit, Worker
from contract.storage import join
from contract.tokenization import Encoding
from contract.weights import weights_identity
from precompute.config import ModelConfig, PrecomputeConfig
from precompute.model import choose_device, context_length, load_model, load_model_config
from precompute.top_k import TopK, top_k_statistics

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LogitsStage:
    """Runs one model over the chunks in `chunks` (a folder with a manifest)."""

    model: ModelConfig
    config: PrecomputeConfig
    chunks: str
    output: str

    kind = "logits"

    @property
    def name(self) -> str:
        return f"precompute/{self.model.id}"

    @property
    def resources(self) -> Resources:
        return Resources(workers=self.config.workers, num_cpus=self.config.threads, num_gpus=self.config.num_gpus)

    @cached_property
    def _chunks(self) -> Manifest:
        return read_manifest(self.chunks, "chunks", "chunk")

    @cached_property
    def _identity(self) -> dict[str, str]:
        return {
            "source": self.model.id,
            "weights": weights_identity(self.model.path, self.model.revision),
            "dtype": self.model.dtype,
            "fingerprint": load_encoder(self.model.path, self.model.revision).fingerprint,
        }

    def check(self, block_size: int) -> None:
        """Refuses, before any weights are loaded, what cannot work.

        Raises:
            ConfigError: no such model, k larger than its vocabulary, or a context shorter than the block.
        """
        model_config = load_model_config(self.model)
        size = load_encoder(self.model.path, self.model.revision).vocab_size
        if self.config.k > size:
            raise ConfigError(
                "k is larger than a vocabulary.",
                field="precompute.k",
                found=self.config.k,
                expected=f"at most {size}, the vocabulary of '{self.model.id}'",
                remedy="lower precompute.k",
            )
        context = context_length(model_config)
        if context is not None and context < block_size:
            raise ConfigError(
                "A model's context is shorter than the block.",
                field="chunk.block_size",
                found=block_size,
                expected=f"at most {context}, the context of '{self.model.id}'",
                remedy="lower chunk.block_size",
            )

    def units(self) -> Iterator[Unit]:
        for index, part in enumerate(self._chunks.parts):
            if part.split in self.config.splits:
                yield Unit(index, part.split, {"chunks": join(self.chunks, part.name)}, {"chunks": part.sha256})

    def provenance(self, unit: Unit) -> Provenance:
        config = {name: getattr(self.config, name) for name in ("k", "batch_tokens", "threads")}
        return Provenance(self.kind, unit.split, config, unit.hashes, self._identity)

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        return differences(found, self.provenance(unit))

    def worker(self) -> Worker:
        import torch

        device = choose_device(self.config.device)
        if device.type == "cpu":
            torch.set_num_threads(self.config.threads)
        encoder = load_encoder(self.model.path, self.model.revision)
        return LogitsWorker(self, encoder, load_model(self.model, device), device)


@dataclass(frozen=True)
class LogitsWorker:
    stage: LogitsStage
    encoder: Encoder
    model: torch.nn.Module
    device: torch.device

    def __call__(self, unit: Unit) -> PartEntry:
        chunks, cut = read_part(unit.inputs["chunks"], "chunks", sha256=unit.hashes["chunks"])
        texts = chunks.column("text").to_pylist()
        encodings = self.encoder.encode(texts)
        self._refuse_long(encodings, cut.config["block_size"], unit)
        results = [_nothing(self.stage.config.k)] * len(encodings)
        for batch in batches_by_length([len(e.ids) for e in encodings], self.stage.config.batch_tokens):
            for row, result in zip(batch, self._run([encodings[row] for row in batch], unit), strict=True):
                results[row] = result
        table = _table(chunks, encodings, results)
        tokens = sum(len(encoding.ids) for encoding in encodings)
        stats = {
            "nll": float(sum(result.label_nll.double().sum().item() for result in results)),
            "lossy_chunks": sum(encoding.lossy for encoding in encodings),
        }
        path = join(self.stage.output, unit.part)
        return write_part(path, table, self.stage.provenance(unit), tokens, stats)

    def _run(self, encodings: list[Encoding], unit: Unit) -> list[TopK]:
        """One forward pass over right-padded rows; causal attention keeps the padding out of every real position."""
        import torch

        lengths = [len(encoding.ids) for encoding in encodings]
        ids = torch.zeros((len(encodings), max(lengths)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : lengths[row]] = torch.from_numpy(encoding.ids.astype(np.int64))
            mask[row, : lengths[row]] = 1
        labels = torch.full_like(ids, -1)
        labels[:, :-1] = torch.where(mask[:, 1:] == 1, ids[:, 1:], -1)
        real = mask.bool()
        with torch.inference_mode():
            logits = self.model(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False
            ).logits
            try:
                flat = top_k_statistics(
                    logits[real.to(self.device)],
                    labels[real].to(self.device),
                    self.stage.config.k,
                    self.encoder.vocab_size,
                )
            except FloatingPointError as error:
                raise DataError(
                    f"The source '{self.stage.model.id}' gives no valid distribution: {error}.",
                    file=unit.inputs["chunks"],
                    found="NaN or infinite logits",
                    expected="finite logits",
                    remedy="use another dtype for this source (bfloat16 or float32)",
                ) from None
        split = [part.cpu().split(lengths) for part in flat]
        return [TopK(*parts) for parts in zip(*split, strict=True)]

    def _refuse_long(self, encodings: list[Encoding], block_size: int, unit: Unit) -> None:
        """Chunks are cut for the tokenizers known then; a source that joined later may need more tokens."""
        longest = max((len(encoding.ids) for encoding in encodings), default=0)
        if longest > block_size:
            raise DataError(
                f"A chunk does not fit the block under the tokenizer of '{self.stage.model.id}'.",
                file=unit.inputs["chunks"],
                field="block_size",
                found=f"{longest} tokens",
                expected=f"at most {block_size}",
                remedy="this source joined after the corpus was cut: run `fusionx chunk --overwrite` with it",
            )


def batches_by_length(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length whose padded size stays within `batch_tokens` (at least one row)."""
    batch: list[int] = []
    for row in sorted((row for row in range(len(lengths)) if lengths[row]), key=lambda row: (-lengths[row], row)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _nothing(k: int) -> TopK:
    """The statistics of a chunk in which the tokenizer found no token."""
    import torch

    return TopK(torch.zeros((0, k), dtype=torch.long), torch.zeros((0, k)), torch.zeros(0))


def _table(chunks: pa.Table, encodings: list[Encoding], results: list[TopK]) -> pa.Table:
    columns: dict[str, Any] = {
        **{name: chunks.column(name) for name in ("doc_id", "chunk", "text_hash")},
        "input_ids": list_column([encoding.ids for encoding in encodings], pa.int32()),
        "ends": list_column([encoding.ends for encoding in encodings], pa.int32()),
        "top_ids": list_column([result.ids.numpy() for result in results], pa.int32()),
        "top_logprobs": list_column([result.logprobs.numpy() for result in results], pa.float16()),
        "token_nll": list_column([result.label_nll.numpy()[:-1] for result in results], pa.float32()),
    }
    return pa.table(columns, schema=LOGITS)
