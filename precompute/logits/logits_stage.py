"""The precompute stage: one source's top-k distributions for every chunk. One unit is one part of chunks.

Batches are formed inside a unit, by length, so that a part's bytes depend on the unit and never on who computed it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.storage import join
from fusionx.contract.shards.codec import Distributions, add_distributions, add_token_nll, add_tokens, divergence
from fusionx.contract.shards.manifest import Manifest, read_manifest
from fusionx.contract.shards.parts import PartEntry, Provenance, differences, read_part, write_part
from fusionx.contract.stage import Resources, Unit, Worker
from fusionx.contract.tokens.encoder import Encoder, load_encoder
from fusionx.contract.tokens.encoding import Encoding
from fusionx.contract.weights import weights_identity
from fusionx.precompute.config import ModelConfig, PrecomputeConfig
from fusionx.precompute.logits.source_model import (
    SourceModel,
    choose_device,
    context_length,
    load_model_config,
    load_source,
)
from fusionx.precompute.logits.top_k import TopK, top_k_statistics

if TYPE_CHECKING:
    import torch


_CONTENT = ("k", "mass", "mantissa_bits", "batch_tokens", "threads")
_UNITS_AT_ONCE = 3
"""One is read and tokenized, one computed, one encoded and written."""

_BATCH_OVERHEAD = 256
"""Padded tokens that a batch more may save at least: about what its launching costs a small model on a GPU."""


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
        config = self.config
        return Resources(config.workers, config.threads, config.num_gpus, _UNITS_AT_ONCE, config.resources)

    @cached_property
    def _chunks(self) -> Manifest:
        return read_manifest(self.chunks, "chunks", "chunk")

    @cached_property
    def _identity(self) -> dict[str, str]:
        return {
            "source": self.model.id,
            "weights": _weights(self.model),
            "dtype": self.model.dtype,
            "attention": self.model.attention,
            "quantization": self.model.quantization,
            "window_overlap": str(self.model.window_overlap),
            "fingerprint": load_encoder(self.model.path, self.model.revision).fingerprint,
        }

    def check(self, block_size: int) -> None:
        """Refuses, before any weights are loaded, what cannot work.

        Raises:
            ConfigError: no such model, k larger than its vocabulary, a context shorter than the block without
                windows, or windows that do not advance.
        """
        context = source_context(self.model)
        size = load_encoder(self.model.path, self.model.revision).vocab_size
        if self.config.k > size:
            raise ConfigError(
                "k is larger than a vocabulary.",
                field="precompute.k",
                found=self.config.k,
                expected=f"at most {size}, the vocabulary of '{self.model.id}'",
                remedy="lower precompute.k",
            )
        overlap = self.model.window_overlap
        if context is not None and context < block_size and overlap is None:
            raise ConfigError(
                "A model's context is shorter than the block.",
                field="chunk.block_size",
                found=block_size,
                expected=f"at most {context}, the context of '{self.model.id}'",
                remedy="lower chunk.block_size, or set window_overlap for this model",
            )
        if context is not None and overlap is not None and overlap >= context:
            raise ConfigError(
                "Windows that share their whole length do not advance.",
                field=f"window_overlap of model '{self.model.id}'",
                found=overlap,
                expected=f"less than {context}, its context",
                remedy="half the context gives every position at least that much to look back on",
            )

    def units(self) -> list[Unit]:
        return [
            Unit(index, part.split, {"chunks": join(self.chunks, part.name)}, {"chunks": part.sha256})
            for index, part in enumerate(self._chunks.parts)
            if part.split in self.config.splits
        ]

    def provenance(self, unit: Unit) -> Provenance:
        config = {name: getattr(self.config, name) for name in _CONTENT}
        return Provenance(self.kind, unit.split, config, unit.hashes, self._identity)

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        return differences(found, self.provenance(unit))

    def worker(self) -> Worker:
        device = choose_device(self.config.device)
        _hold_threads(device, self.config.threads)
        encoder = load_encoder(self.model.path, self.model.revision)
        source = load_source(self.model, encoder.vocab_size, device, self.config.num_gpus)
        return LogitsWorker(self, encoder, source, source_context(self.model))


@dataclass(frozen=True)
class LogitsWorker:
    """Makes parts, several at once in as many threads; the model is in one thread's hands at a time."""

    stage: LogitsStage
    encoder: Encoder
    source: SourceModel
    context: int | None
    device_lock: Lock = field(default_factory=Lock)

    def __call__(self, unit: Unit) -> PartEntry:
        chunks, cut = read_part(unit.inputs["chunks"], "chunks", sha256=unit.hashes["chunks"])
        encodings = self.encoder.encode(chunks.column("text").to_pylist())
        self._refuse_long(encodings, cut.config["block_size"], unit)
        exact, stored, token_nll = self.read(encodings, unit.inputs["chunks"])
        table = _table(chunks, encodings, stored, token_nll)
        stats = {
            "nll": float(token_nll.sum(dtype=np.float64)),
            "lossy_chunks": sum(encoding.lossy for encoding in encodings),
        }
        if stored is not exact:
            stats["rounding_kl"] = float(divergence(exact, stored).sum())
        path = join(self.stage.output, unit.part)
        return write_part(path, table, self.stage.provenance(unit), len(token_nll), stats)

    def read(self, encodings: list[Encoding], file: str) -> tuple[Distributions, Distributions, np.ndarray]:
        """What the model says of every token's successor: exactly, as shards keep it, and the NLL of the text's own
        next token, float32 [N], nats. `file`: where the texts come from."""
        results = self._run(UnitTokens.of(encodings))
        _refuse_invalid(results, self.stage.model.id, file)
        config = self.stage.config
        ids, logprobs, token_nll, tail = (values.numpy() for values in results)
        exact = stored = Distributions.from_top_k(ids, logprobs, tail, config.mass)
        if config.mantissa_bits is not None:
            stored = exact.rounded(config.mantissa_bits)
        return exact, stored, token_nll

    def _run(self, tokens: UnitTokens) -> TopK:
        """The statistics of every token of the unit, in its order."""
        import torch

        windows = list(windows_of(np.diff(tokens.offsets).tolist(), self.context, self.stage.model.window_overlap))
        done = None
        finished: list[tuple[torch.Tensor, TopK]] = []
        with self.device_lock, torch.inference_mode():
            _hold_threads(self.source.device, self.stage.config.threads)
            for batch in batches_by_length([w.stop - w.start for w in windows], self.stage.config.batch_tokens):
                finished += self._batch(tokens, [windows[number] for number in batch])
            if self.source.head_device.type == "cuda":
                done = torch.cuda.current_stream(self.source.head_device).record_event()
        if done is not None:
            done.synchronize()  # outside the lock: the next unit computes while the last results arrive
        return _gathered(finished, len(tokens.ids), self.stage.config.k)

    def _batch(self, tokens: UnitTokens, windows: list[Window]) -> Iterator[tuple[torch.Tensor, TopK]]:
        """(places in the unit int64 [n], their statistics) of one forward pass, on their way to the host."""
        import torch

        firsts = [int(tokens.offsets[window.row]) for window in windows]
        rows = [tokens.ids[first + w.start : first + w.stop] for first, w in zip(firsts, windows, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        places = [torch.arange(first + w.fresh, first + w.stop) for first, w in zip(firsts, windows, strict=True)]
        positions = [
            torch.arange(w.fresh - w.start, w.stop - w.start) + row * ids.shape[1] for row, w in enumerate(windows)
        ]
        start, flat = 0, torch.cat(places)
        labels = tokens.labels[flat].to(self.source.head_device)
        for logits in self.source.logits(ids, torch.cat(positions)):
            stop = start + len(logits)
            found = top_k_statistics(logits, labels[start:stop], self.stage.config.k, self.encoder.vocab_size)
            # From a GPU this goes into pinned memory and does not wait.
            yield flat[start:stop], TopK(*(values.to("cpu", non_blocking=True) for values in found))
            start = stop

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


@dataclass(frozen=True)
class UnitTokens:
    """A unit's tokens, chunk after chunk.

    ids: int64 [N]. labels: int64 [N], the next token of the same chunk, -1 at its end. offsets: int64 [rows + 1].
    """

    ids: torch.Tensor
    labels: torch.Tensor
    offsets: np.ndarray

    @classmethod
    def of(cls, encodings: list[Encoding]) -> UnitTokens:
        import torch

        offsets = np.cumsum([0, *(len(encoding.ids) for encoding in encodings)])
        ids = np.concatenate([np.zeros(0, np.int64), *(encoding.ids for encoding in encodings)])
        labels = np.append(ids[1:], -1)[: len(ids)]
        labels[offsets[1:][offsets[1:] > 0] - 1] = -1
        return cls(torch.from_numpy(ids), torch.from_numpy(labels), offsets)


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a row go through the model; the distributions from `fresh` on are kept."""

    row: int
    start: int
    fresh: int
    stop: int


def windows_of(lengths: list[int], context: int | None, overlap: int | None) -> Iterator[Window]:
    """One window per row that has tokens; of a row longer than `context` as many as it takes.

    Consecutive windows share `overlap` tokens; these are kept from the earlier one, where more precedes them.
    """
    for row, length in enumerate(lengths):
        start = fresh = 0
        while fresh < length:
            stop = length if context is None or overlap is None else min(length, start + context)
            yield Window(row, start, fresh, stop)
            start, fresh = stop - (overlap or 0), stop


def batches_by_length(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers in batches of similar length whose padded size stays within `batch_tokens` (at least one row).

    Of all ways to cut the rows in order of length it is the cheapest in padded tokens, a batch counting as
    `_BATCH_OVERHEAD` more. What is left as padding (2.3 % of a part of a megabyte) is not worth packing rows together.
    """
    rows = sorted((row for row in range(len(lengths)) if lengths[row]), key=lambda row: (-lengths[row], row))
    costs, starts = [0], [0]
    for stop in range(1, len(rows) + 1):
        choices: list[tuple[int, int]] = []
        for start in range(stop - 1, -1, -1):
            size = (stop - start) * lengths[rows[start]]
            if choices and size > batch_tokens:
                break
            choices.append((costs[start] + size + _BATCH_OVERHEAD, start))
        cost, start = min(choices)
        costs.append(cost)
        starts.append(start)
    batches = []
    stop = len(rows)
    while stop:
        batches.append(rows[starts[stop] : stop])
        stop = starts[stop]
    return batches[::-1]


def source_context(model: ModelConfig) -> int | None:
    """Tokens that the model can look back on, None where nothing limits them."""
    return None if model.kind == "fake" else context_length(load_model_config(model))


def _weights(model: ModelConfig) -> str:
    return "fake" if model.kind == "fake" else weights_identity(model.path, model.revision)


def _hold_threads(device: torch.device, threads: int) -> None:
    """Sums depend on the number of threads, and every thread that computes keeps its own."""
    import torch

    if device.type == "cpu":
        torch.set_num_threads(threads)


def _gathered(finished: list[tuple[torch.Tensor, TopK]], tokens: int, k: int) -> TopK:
    """The batches' statistics in the unit's order."""
    import torch

    whole = TopK(
        torch.empty((tokens, k), dtype=torch.int32),
        torch.empty((tokens, k)),
        torch.empty(tokens),
        torch.empty(tokens),
    )
    for places, part in finished:
        for values, some in zip(whole, part, strict=True):
            values[places] = some
    return whole


def _refuse_invalid(results: TopK, source: str, file: str) -> None:
    invalid = int(results.tail.isnan().sum())
    if invalid:
        raise DataError(
            f"The source '{source}' gives no valid distribution at {invalid} of {len(results.tail)} positions.",
            file=file,
            found="NaN or infinite logits",
            expected="finite logits",
            remedy="use another dtype for this source (bfloat16 or float32)",
        )


def _table(
    chunks: pa.Table, encodings: list[Encoding], distributions: Distributions, token_nll: np.ndarray
) -> pa.Table:
    table = chunks.select(["doc_id", "chunk", "text_hash"]).replace_schema_metadata(None)
    table = add_tokens(table, [encoding.ids for encoding in encodings], [encoding.ends for encoding in encodings])
    table = add_distributions(table, distributions, [len(encoding.ids) for encoding in encodings])
    return add_token_nll(table, token_nll)
