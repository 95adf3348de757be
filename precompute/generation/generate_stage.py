"""The generate stage: one source goes on from beginnings of the training text. One unit is one part of chunks.

Every chunk of the domains that the source knows best gives `times` prompts, at places that follow from its text, and
the source goes on as it would write (sequence-level distillation: Kim and Rush, arXiv 1606.07947). What it samples is
decided by the unit, never by who samples it; another device or number of threads rounds differently and may write other
texts.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from fusionx.contract.errors import ConfigError
from fusionx.contract.files.storage import join
from fusionx.contract.shards.manifest import Manifest, read_manifest
from fusionx.contract.shards.parts import PartEntry, Provenance, differences, read_part, write_part
from fusionx.contract.shards.schema import GENERATED, text_hash
from fusionx.contract.stage import Resources, Unit, Worker, units_of_chunks
from fusionx.contract.tokens.encoder import Encoder, load_encoder
from fusionx.contract.weights import weights_identity
from fusionx.precompute.config import GenerateConfig, ModelConfig, PrecomputeConfig
from fusionx.precompute.logits.logits_stage import source_context
from fusionx.precompute.logits.source_model import choose_device, load_model

_LEAST = 2
"""A text has at least so many times its prompt's bytes; a source that ends at once has nothing to say."""


@dataclass(frozen=True)
class GenerateStage:
    """Has one model write text of `domains` from the chunks in `chunks` (a folder with a manifest)."""

    model: ModelConfig
    domains: tuple[str, ...]
    config: GenerateConfig
    precompute: PrecomputeConfig
    chunks: str
    output: str

    kind = "generated"

    @property
    def name(self) -> str:
        return f"generate/{self.model.id}"

    @property
    def resources(self) -> Resources:
        config = self.precompute
        return Resources(config.workers, config.threads, config.num_gpus, custom=config.resources)

    @cached_property
    def _chunks(self) -> Manifest:
        return read_manifest(self.chunks, "chunks", "chunk")

    @cached_property
    def _identity(self) -> dict[str, str]:
        return {
            "source": self.model.id,
            "weights": weights_identity(self.model.path, self.model.revision),
            "dtype": self.model.dtype,
            "quantization": self.model.quantization,
            "fingerprint": load_encoder(self.model.path, self.model.revision).fingerprint,
            "domains": ", ".join(self.domains),
        }

    def check(self) -> None:
        """
        Raises:
            ConfigError: the model cannot write, or has no room for a prompt and a text.
        """
        if self.model.kind == "fake":
            raise ConfigError(
                "A stand-in for a model writes no text.",
                field=f"kind of model '{self.model.id}'",
                found="fake",
                expected="causal-lm",
            )
        context, prompt = source_context(self.model), self.config.prompt_tokens
        if context is not None and context < 2 * prompt:
            raise ConfigError(
                "A prompt leaves no room for a text.",
                field="generate.prompt_tokens",
                found=f"{prompt}, and '{self.model.id}' has a context of {context}",
                expected=f"at most {context // 2}",
                remedy="lower generate.prompt_tokens",
            )

    def units(self) -> list[Unit]:
        return units_of_chunks(self.chunks, self._chunks, ("train",))

    def provenance(self, unit: Unit) -> Provenance:
        content = {**self.config.model_dump(), "batch_tokens": self.precompute.batch_tokens}
        return Provenance(self.kind, unit.split, content, unit.hashes, self._identity)

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        return differences(found, self.provenance(unit))

    def worker(self) -> Worker:
        import torch

        device = choose_device(self.precompute.device)
        if device.type == "cpu":
            torch.set_num_threads(self.precompute.threads)
        encoder = load_encoder(self.model.path, self.model.revision)
        model = load_model(self.model, device, self.precompute.num_gpus)
        return GenerateWorker(self, encoder, model, source_context(self.model))


@dataclass(frozen=True)
class _Prompt:
    """Where it comes from, and its tokens, with a BOS in front where the source reads one."""

    doc_id: int
    chunk: int
    domain: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class GenerateWorker:
    stage: GenerateStage
    encoder: Encoder
    model: Any
    context: int | None

    def __call__(self, unit: Unit) -> PartEntry:
        chunks, _ = read_part(unit.inputs["chunks"], "chunks", sha256=unit.hashes["chunks"])
        rows = [row for row in chunks.to_pylist() if row["domain"] in self.stage.domains]
        made: dict[str, dict[str, Any]] = {}
        tokens = 0
        for batch in self._batches(self._prompts(rows)):
            seed = hashlib.blake2b(repr([prompt.ids for prompt in batch]).encode(), digest_size=8).digest()
            for prompt, ids in zip(batch, self._sampled(batch, int.from_bytes(seed) >> 1), strict=True):
                text = self._text(ids)
                if len(text.encode()) >= _LEAST * len(self.encoder.table.joined(prompt.ids)):
                    key = text_hash(text)
                    made[key] = {"doc_id": prompt.doc_id, "chunk": prompt.chunk, "text_hash": key}
                    made[key] |= {"domain": prompt.domain, "text": text}
                    tokens += len(ids)
        table = pa.Table.from_pylist([*made.values()], schema=GENERATED)
        return write_part(join(self.stage.output, unit.part), table, self.stage.provenance(unit), tokens)

    def _prompts(self, rows: list[dict[str, Any]]) -> Iterator[_Prompt]:
        config, table, bos = self.stage.config, self.encoder.table, self.encoder.bos
        before = () if bos is None else (bos,)
        for row, encoding in zip(rows, self.encoder.encode([row["text"] for row in rows]), strict=True):
            ids = [token for token in encoding.ids.tolist() if token not in table.special_role]
            length = min(config.prompt_tokens, len(ids) // 2)
            if length == 0:
                continue
            places = np.random.default_rng(int(row["text_hash"][:15], 16))
            for number in range(config.times):
                # Beginnings of documents come first, which places drawn evenly would hardly meet.
                start = 0 if number == 0 else int(places.integers(len(ids) - length + 1))
                prompt = ids[start : start + length]
                yield _Prompt(row["doc_id"], row["chunk"], row["domain"], (*before, *prompt))

    def _batches(self, prompts: Iterator[_Prompt]) -> Iterator[list[_Prompt]]:
        """Of prompts of one length, as many as `batch_tokens` hold with what is written to them."""
        by_length: defaultdict[int, list[_Prompt]] = defaultdict(list)
        for prompt in prompts:
            by_length[len(prompt.ids)].append(prompt)
        for length, alike in sorted(by_length.items()):
            size = max(1, self.stage.precompute.batch_tokens // (length + self._room(length)))
            yield from (alike[at : at + size] for at in range(0, len(alike), size))

    def _room(self, length: int) -> int:
        new = self.stage.config.new_tokens
        return new if self.context is None else max(1, min(new, self.context - length))

    def _sampled(self, batch: list[_Prompt], seed: int) -> list[list[int]]:
        """Prompts and what was written to them."""
        import torch
        from transformers import GenerationConfig

        config, tokenizer, length = self.stage.config, self.encoder.tokenizer, len(batch[0].ids)
        ids = torch.tensor([prompt.ids for prompt in batch], device=self.model.get_input_embeddings().weight.device)
        ends = getattr(self.model, "generation_config", None)
        ends = tokenizer.eos_token_id if ends is None or ends.eos_token_id is None else ends.eos_token_id
        first = ends[0] if isinstance(ends, list) else ends
        how = GenerationConfig(  # of its own: a model's folder may ask for greedy search or penalties
            do_sample=True,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=0,
            max_new_tokens=self._room(length),
            eos_token_id=ends,
            pad_token_id=first if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        devices = [ids.device] if ids.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            found = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
        return found.tolist()

    def _text(self, ids: list[int]) -> str:
        """Up to the first special token behind the BOS, and to the first bytes that are no text, which most often are
        those of a character that was not finished."""
        table = self.encoder.table
        ids = ids[1:] if self.encoder.add_bos else ids
        end = next((place for place, token in enumerate(ids) if token in table.special_role), len(ids))
        written = table.joined([token for token in ids[:end] if token < table.size])
        try:
            return written.decode()
        except UnicodeDecodeError as error:
            return written[: error.start].decode()
