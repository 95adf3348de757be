"""The precompute stage: one source's top-k distributions for every chunk. One unit is one part of chunks.

Batches are formed inside a unit, by length, so that a part's bytes depend on the unit and never on who computed it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from fusionx.contract.errors import ConfigError, DataError
from fusionx.contract.files.storage import join
from fusionx.contract.shards.codec import Distributions, add_distributions, add_token_nll, add_tokens, divergence
from fusionx.contract.shards.manifest import Manifest, has_manifest, read_manifest
from fusionx.contract.shards.parts import PartEntry, Provenance, differences, read_part, write_part
from fusionx.contract.stage import Occupancy, Resources, Unit, Worker, units_of_chunks
from fusionx.contract.tokens.chat import CHAT, ChatEncoder, load_chat_encoder
from fusionx.contract.tokens.encoder import Encoder, load_encoder
from fusionx.contract.tokens.encoding import Encoding
from fusionx.contract.weights import weights_identity
from fusionx.precompute.config import ModelConfig, PrecomputeConfig
from fusionx.precompute.logits.batches import Plan, UnitTokens, batches_of, windows_of
from fusionx.precompute.logits.source_kind import check_kind
from fusionx.precompute.logits.source_model import (
    SourceModel,
    choose_device,
    context_length,
    load_model_config,
    load_source,
    rotary_switch,
)
from fusionx.precompute.logits.top_k import TopK, shared_memory, statistics_in, top_k_statistics

if TYPE_CHECKING:
    import torch


_CONTENT = ("k", "mass", "mantissa_bits", "batch_tokens", "threads")
_UNITS_AT_ONCE = 3
"""One is read and tokenized, one computed, one encoded and written."""
_UNITS_AT_ONCE_BESIDE_A_GPU = 6
"""A small model computes a unit in a third of the seconds that a core needs to tokenize, encode and write it; five do
that, and it is work without the interpreter's lock."""


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
        on_gpu = config.num_gpus > 0 or config.device == "cuda"
        at_once = _UNITS_AT_ONCE_BESIDE_A_GPU if on_gpu else _UNITS_AT_ONCE
        return Resources(config.workers, config.threads, config.num_gpus, at_once, config.resources)

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
            **({"chat": self._encoder.fingerprint} if isinstance(self._encoder, ChatEncoder) else {}),
        }

    @cached_property
    def _encoder(self) -> Encoder | ChatEncoder:
        """What reads the chunks, or any text where there are none yet."""
        if has_manifest(self.chunks) and self._chunks.config.get("format") == CHAT:
            return load_chat_encoder(self.model.id, self.model.path, self.model.revision, self.model.chat_template)
        return load_encoder(self.model.path, self.model.revision)

    def check(self, block_size: int) -> None:
        """Refuses, before any weights are loaded, what cannot work.

        Raises:
            ConfigError: no such model, or none that can be a source, k larger than its vocabulary, a context shorter
                than the block without windows, or windows that do not advance.
            DataError: a weight file is damaged or cut short.
        """
        if self.model.kind != "fake":
            check_kind(self.model)
        context = source_context(self.model)
        encoder = load_encoder(self.model.path, self.model.revision)
        size = encoder.vocab_size
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
        if context is not None and overlap is not None and overlap >= context - encoder.add_bos:
            room = f"{context}, its context" + (" (one less for the BOS of every window)" if encoder.add_bos else "")
            raise ConfigError(
                "Windows that share their whole length do not advance.",
                field=f"window_overlap of model '{self.model.id}'",
                found=overlap,
                expected=f"less than {room}",
                remedy="half the context gives every position at least that much to look back on",
            )

    def units(self) -> list[Unit]:
        return units_of_chunks(self.chunks, self._chunks, self.config.splits)

    def provenance(self, unit: Unit) -> Provenance:
        config = {name: getattr(self.config, name) for name in _CONTENT}
        return Provenance(self.kind, unit.split, config, unit.hashes, self._identity)

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        return differences(found, self.provenance(unit))

    def worker(self) -> Worker:
        device = choose_device(self.config.device)
        _hold_threads(device, self.config.threads)
        encoder = self._encoder
        source = load_source(self.model, encoder.vocab_size, device, self.config.num_gpus)
        return LogitsWorker(self, encoder, source, *source_lengths(self.model))


@dataclass(frozen=True)
class LogitsWorker:
    """Makes parts, several at once in as many threads; the model is in one thread's hands at a time."""

    stage: LogitsStage
    encoder: Encoder | ChatEncoder
    source: SourceModel
    context: int | None
    rotary_switch: int | None = None
    device_lock: Lock = field(default_factory=Lock)
    occupancy: Occupancy = field(default_factory=Occupancy)

    def __call__(self, unit: Unit) -> PartEntry:
        with self.occupancy.unit():
            return self._make(unit)

    def _make(self, unit: Unit) -> PartEntry:
        chunks, cut = read_part(unit.inputs["chunks"], "chunks", sha256=unit.hashes["chunks"])
        encodings = self.encoder.encode(chunks.column("text").to_pylist())
        self._refuse_long(encodings, cut.config["block_size"], unit)
        exact, stored, token_nll = self.read(encodings, unit.inputs["chunks"])
        table = table_of(chunks, [encoding.read for encoding in encodings], stored, token_nll)
        stats = {
            "nll": float(token_nll.sum(dtype=np.float64)),
            "lossy_chunks": sum(encoding.lossy for encoding in encodings),
        }
        if stored is not exact:
            stats["rounding_kl"] = float(divergence(exact, stored).sum())
        path = join(self.stage.output, unit.part)
        return write_part(path, table, self.stage.provenance(unit), len(token_nll), stats)

    def read(self, encodings: list[Encoding], file: str) -> tuple[Distributions, Distributions, np.ndarray]:
        """What the model says of every token's successor (of a chat from the answer's first on): exactly, as shards
        keep it, and the NLL of the text's own next token, float32 [N], nats. `file`: where the texts come from."""
        tokens = UnitTokens.of(encodings)
        self._refuse_unknown(tokens, file)
        results = self._run(tokens)
        self._refuse_invalid(results, tokens, file)
        if tokens.stored is not None:
            results = _chunk_after_chunk(results, tokens.stored, [len(encoding.read.ids) for encoding in encodings])
        config = self.stage.config
        ids, logprobs, token_nll, tail = (values.numpy() for values in results)
        exact = stored = Distributions.from_top_k(ids, logprobs, tail, config.mass)
        if config.mantissa_bits is not None:
            stored = exact.rounded(config.mantissa_bits)
        return exact, stored, token_nll

    def _run(self, tokens: UnitTokens) -> TopK:
        """The statistics of every token of the unit, in its order.

        What can be done without the device is done outside the lock. Inside, work is only handed to it: nothing there
        waits for a result, and the results of the whole unit leave in one copy.
        """
        import torch

        plan = self.plan(tokens).to(self.source.device)
        done, k = None, self.stage.config.k
        with self.occupancy.used():
            with self.device_lock, torch.inference_mode():
                _hold_threads(self.source.device, self.stage.config.threads)
                memory = self._results(plan).to("cpu", non_blocking=True)  # from a GPU into pinned memory
                if self.source.head_device.type == "cuda":
                    done = torch.cuda.current_stream(self.source.head_device).record_event()
            if done is not None:
                done.synchronize()
        return statistics_in(memory, k)

    def plan(self, tokens: UnitTokens) -> Plan:
        """How the model goes through a unit."""
        source, config, bos = self.source, self.stage.config, self.encoder.bos
        lengths = np.diff(tokens.offsets).tolist()
        windows = list(windows_of(lengths, self.context, self.stage.model.window_overlap, bos is not None))
        batch_tokens = 1 if source.by_rows else config.batch_tokens
        batches = batches_of(windows, batch_tokens, source.shapes, self.context, self.rotary_switch)
        return Plan.of(tokens, batches, bos)

    def _results(self, plan: Plan) -> torch.Tensor:
        """The unit's statistics where its head is, as `shared_memory`."""
        k, device = self.stage.config.k, self.source.head_device
        vocab_size = min(self.encoder.vocab_size, self.source.vocab_size)
        places, labels = (values.to(device, non_blocking=True) for values in (plan.places, plan.labels))
        memory = shared_memory(len(places), k, device)
        kept = statistics_in(memory, k)
        start = 0
        for logits in self.source.logits(plan.batches()):
            stop = start + len(logits)
            found = top_k_statistics(logits, labels[start:stop], k, vocab_size)
            for whole, part in zip(kept, found, strict=True):
                whole.index_copy_(0, places[start:stop], part)
            start = stop
        return memory

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
                remedy="this source joined after the corpus was cut: run `fusionx chunk --overwrite` with it, which "
                "cuts again what does not fit, and `fusionx precompute --overwrite`",
            )

    def _refuse_unknown(self, tokens: UnitTokens, file: str) -> None:
        """Tokenizers may have more ids than their model has rows, as long as no text holds one of them."""
        unknown = (tokens.ids >= self.source.vocab_size).nonzero().flatten()
        if len(unknown):
            place = int(unknown[0])
            raise DataError(
                f"The text holds a token that the model '{self.stage.model.id}' does not know.",
                file=file,
                found=f"id {int(tokens.ids[place])}, {self._shown(tokens, place)}",
                expected=f"ids below {self.source.vocab_size}, the rows of its embedding and head",
                remedy="give the tokenizer that the model was trained with, or take this text out of the corpus",
            )

    def _refuse_invalid(self, results: TopK, tokens: UnitTokens, file: str) -> None:
        source, count = self.stage.model.id, len(results.tail)
        undefined = results.tail.isnan().nonzero().flatten()
        if len(undefined):
            place = tokens.place(int(undefined[0]))
            raise DataError(
                f"The source '{source}' gives no valid distribution at {len(undefined)} of {count} positions.",
                file=file,
                found=f"NaN or infinite logits, first after id {int(tokens.ids[place])}, {self._shown(tokens, place)}",
                expected="finite logits",
                remedy="use another dtype for this source (bfloat16 or float32)",
            )
        impossible = results.label_nll.isinf().nonzero().flatten()
        if len(impossible):
            place = tokens.place(int(impossible[0])) + 1
            raise DataError(
                f"The source '{source}' rules out {len(impossible)} of the text's {count} tokens.",
                file=file,
                found=f"probability 0 for id {int(tokens.ids[place])}, {self._shown(tokens, place)}",
                expected="a finite logit for every token of the text",
                remedy="use the weights that belong to this tokenizer: this head masks ids that its tokenizer writes",
            )

    def _shown(self, tokens: UnitTokens, place: int) -> str:
        """A token of the unit with the text before it, for errors."""
        row = int(np.searchsorted(tokens.offsets, place, side="right")) - 1
        before = tokens.ids[max(int(tokens.offsets[row]), place - 12) : place].tolist()
        token, text = (self.encoder.tokenizer.decode(ids) for ids in ([int(tokens.ids[place])], before))
        return f"{token!r} behind {text!r}"


def source_lengths(model: ModelConfig) -> tuple[int | None, int | None]:
    """`context_length` and `rotary_switch` of the model's config."""
    if model.kind == "fake":
        return None, None
    config = load_model_config(model)
    return context_length(config), rotary_switch(config)


def source_context(model: ModelConfig) -> int | None:
    """Tokens that the model can look back on, None where nothing limits them."""
    return source_lengths(model)[0]


def _weights(model: ModelConfig) -> str:
    return "fake" if model.kind == "fake" else weights_identity(model.path, model.revision)


def _hold_threads(device: torch.device, threads: int) -> None:
    """Sums depend on the number of threads, and every thread that computes keeps its own."""
    import torch

    if device.type == "cpu":
        torch.set_num_threads(threads)


def _chunk_after_chunk(results: TopK, stored: np.ndarray, lengths: list[int]) -> TopK:
    """The statistics of answers whose conversations went through the model as one, each answer's by itself: its last
    token has no next one."""
    import torch

    ordered = TopK(*(values[torch.from_numpy(stored)] for values in results))
    ordered.label_nll[torch.from_numpy(np.cumsum(lengths) - 1)] = 0.0
    return ordered


def table_of(
    chunks: pa.Table, encodings: list[Encoding], distributions: Distributions, token_nll: np.ndarray
) -> pa.Table:
    table = chunks.select(["doc_id", "chunk", "text_hash"]).replace_schema_metadata(None)
    table = add_tokens(table, [encoding.ids for encoding in encodings], [encoding.ends for encoding in encodings])
    table = add_distributions(table, distributions, [len(encoding.ids) for encoding in encodings])
    return add_token_nll(table, token_nll)
