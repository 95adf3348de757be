"""The align stage: one source's top-k shards into the target's positions and vocabulary. One unit is one part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from align.config import AlignConfig, MapMode
from align.positions import Status, align_positions
from align.projection import project
from align.vocab_map import VocabMap, build_vocab_map, identity_map
from contract.encoder import Encoder, load_encoder
from contract.errors import DataError
from contract.manifest import Manifest, read_manifest
from contract.schema import ALIGNED
from contract.shard import PartEntry, Provenance, Ragged, differences, list_column, match_rows, read_part, write_part
from contract.stage import Resources, Unit, Worker
from contract.storage import join

_BLOCK_POSITIONS = 1 << 15
"""Target positions projected at once; bounds the memory of the intermediate arrays."""


@dataclass(frozen=True)
class AlignedStage:
    """Maps the shards in `logits` onto the target tokens in `tokens`. `source` and `target` are model folders."""

    source: str
    source_path: str
    source_revision: str | None
    target: str
    target_path: str
    target_revision: str | None
    mode: MapMode
    config: AlignConfig
    logits: str
    tokens: str
    output: str

    kind = "aligned"

    @property
    def name(self) -> str:
        return f"align/{self.mode}/{self.source}"

    @property
    def resources(self) -> Resources:
        return Resources(workers=self.config.workers)

    @cached_property
    def _logits(self) -> Manifest:
        return read_manifest(self.logits, "logits", "precompute")

    @cached_property
    def _tokens(self) -> Manifest:
        return read_manifest(self.tokens, "tokens", "align")

    @cached_property
    def k(self) -> int:
        return self.config.k or self._logits.config["k"]

    @cached_property
    def _identity(self) -> dict[str, str]:
        return {
            "source": self.source,
            "source_fingerprint": self._logits.identity["fingerprint"],
            "target": self.target,
            "target_fingerprint": self._tokens.identity["fingerprint"],
        }

    def check(self) -> None:
        """Refuses to align shards whose tokenizer is no longer the one that made them.

        Raises:
            DataError: the source's or target's tokenizer changed since the shards were written.
        """
        for role, path, revision, folder, recorded in (
            ("source", self.source_path, self.source_revision, self.logits, self._identity["source_fingerprint"]),
            ("target", self.target_path, self.target_revision, self.tokens, self._identity["target_fingerprint"]),
        ):
            found = load_encoder(path, revision).fingerprint
            if found != recorded:
                raise DataError(
                    f"A tokenizer changed since its shards were made (the {role}, '{getattr(self, role)}').",
                    file=path,
                    field="tokenizer fingerprint",
                    found=found,
                    expected=f"{recorded} (recorded in {folder})",
                    remedy="restore the tokenizer, or make the shards again with --overwrite",
                )

    def units(self) -> Iterator[Unit]:
        tokens = {part.name: part for part in self._tokens.parts}
        for part in self._logits.parts:
            if part.name not in tokens:
                continue  # the target's tokens cover the splits that training reads
            inputs = {"logits": join(self.logits, part.name), "tokens": join(self.tokens, part.name)}
            hashes = {"logits": part.sha256, "tokens": tokens[part.name].sha256}
            yield Unit(int(part.name[5:-8]), part.split, inputs, hashes)

    def provenance(self, unit: Unit) -> Provenance:
        config = {"map": self.mode, "k": self.k, "span_matches": self.config.span_matches}
        return Provenance(self.kind, unit.split, config, unit.hashes, self._identity)

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        return differences(found, self.provenance(unit))

    def vocab_map(self) -> VocabMap:
        """The map of this pair, built once and kept beside the parts as `vocab_map.parquet`."""
        path = join(self.output, "vocab_map.parquet")
        source, target = self._encoders()
        cached = VocabMap.load_if_valid(path, source.table, target.table, self.mode)
        if cached is not None:
            return cached
        if source.fingerprint == target.fingerprint:
            made = identity_map(source.table, self.mode)
        else:
            made = build_vocab_map(source.table, target.table, self.mode, target_tokenizer=target.tokenizer)
        made.save(path)
        return made

    def _encoders(self) -> tuple[Encoder, Encoder]:
        return (
            load_encoder(self.source_path, self.source_revision),
            load_encoder(self.target_path, self.target_revision),
        )

    def worker(self) -> Worker:
        source, target = self._encoders()
        return AlignWorker(self, source, target, self.vocab_map())


@dataclass(frozen=True)
class AlignWorker:
    stage: AlignedStage
    source: Encoder
    target: Encoder
    vocab_map: VocabMap

    def __call__(self, unit: Unit) -> PartEntry:
        tokens, _ = read_part(unit.inputs["tokens"], "tokens", sha256=unit.hashes["tokens"])
        logits, logits_provenance = read_part(unit.inputs["logits"], "logits", sha256=unit.hashes["logits"])
        logits = logits.take(match_rows(tokens, logits, unit.inputs["tokens"], unit.inputs["logits"]))
        k = logits_provenance.config["k"]

        target_ids, target_ends = (Ragged.from_column(tokens.column(name)) for name in ("input_ids", "ends"))
        source_ids, source_ends = (Ragged.from_column(logits.column(name)) for name in ("input_ids", "ends"))
        statuses, positions = [], []
        for row in range(len(target_ids)):
            index, status = align_positions(
                source_ends.row(row),
                source_ids.row(row),
                target_ends.row(row),
                target_ids.row(row),
                self.source.table,
                self.target.table,
                self.vocab_map if self.stage.config.span_matches else None,
            )
            # Row-wise positions become positions in the whole part's flat arrays.
            positions.append(np.where(index >= 0, index + source_ids.offsets[row], -1))
            statuses.append(status)
        ids, probs = self._project(logits, np.concatenate(positions) if positions else np.zeros(0, np.int64), k)
        columns = {
            **{name: tokens.column(name) for name in ("doc_id", "chunk", "text_hash")},
            "ids": _rows_of(ids, target_ids.offsets),
            "probs": _rows_of(probs, target_ids.offsets),
            "status": list_column(statuses, pa.uint8()),
            "nll": pa.array(_row_sums(Ragged.from_column(logits.column("token_nll")))),
            "nll_bytes": pa.array([int(ends[-1] - ends[0]) if len(ends) else 0 for ends in _rows(source_ends)]),
        }
        table = pa.table(columns, schema=ALIGNED)
        stats = {"status": _status_counts(statuses, tokens.column("domain").to_pylist()), "mass": float(probs.sum())}
        path = join(self.stage.output, unit.part)
        return write_part(path, table, self.stage.provenance(unit), int(target_ids.values.size), stats)

    def _project(self, logits: pa.Table, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [L, k_out] and probabilities float32 [L, k_out] of all the part's target positions."""
        top_ids = Ragged.from_column(logits.column("top_ids")).values.reshape(-1, k)
        top_logprobs = Ragged.from_column(logits.column("top_logprobs")).values.reshape(-1, k)
        k_out = self.stage.k
        ids = np.empty((len(positions), k_out), dtype=np.int32)
        probs = np.empty((len(positions), k_out), dtype=np.float32)
        for start in range(0, len(positions), _BLOCK_POSITIONS):
            block = slice(start, start + _BLOCK_POSITIONS)
            ids[block], probs[block], _ = project(top_ids, top_logprobs, positions[block], self.vocab_map, k_out)
        return ids, probs


def _rows(column: Ragged) -> Iterator[np.ndarray]:
    return (column.row(index) for index in range(len(column)))


def _row_sums(column: Ragged) -> list[float]:
    return [float(row.astype(np.float64).sum()) for row in _rows(column)]


def _rows_of(flat: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    """[L, k] values as one list per chunk; `offsets` are the chunks' borders in L."""
    kind = pa.float16() if flat.dtype == np.float32 else pa.int32()
    values = pa.array(flat.reshape(-1).astype(kind.to_pandas_dtype(), copy=False), type=kind)
    return pa.ListArray.from_arrays(pa.array((offsets * flat.shape[1]).astype(np.int32)), values)


def _status_counts(statuses: list[np.ndarray], domains: list[str]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for status, domain in zip(statuses, domains, strict=True):
        of_domain = counts.setdefault(domain, {member.name.lower(): 0 for member in Status})
        for member in Status:
            of_domain[member.name.lower()] += int((status == member).sum())
    return counts
