"""The align stage: one source's top-k shards into the target's positions and vocabulary. One unit is one part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from fusionx.align.chain_rule import chain_rule_moves
from fusionx.align.config import AlignConfig, MapMode
from fusionx.align.fidelity import fidelity
from fusionx.align.positions import Status, align_positions
from fusionx.align.projection import project
from fusionx.align.vocabulary.vocab_map import Ties, VocabMap, build_vocab_map, identity_map
from fusionx.contract.errors import DataError
from fusionx.contract.files.storage import join
from fusionx.contract.shards.codec import add_distributions, read_distributions, read_token_nll, read_tokens
from fusionx.contract.shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from fusionx.contract.shards.parts import (
    PartEntry,
    Provenance,
    Ragged,
    differences,
    list_column,
    match_rows,
    read_part,
    write_part,
)
from fusionx.contract.stage import Resources, Unit, Worker
from fusionx.contract.tokens.encoder import Encoder, load_encoder


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
                    file=f"{path} and {join(folder, MANIFEST_NAME)}",
                    field="tokenizer fingerprint",
                    found=f"{found} in {path}",
                    expected=f"{recorded}, as in {join(folder, MANIFEST_NAME)}",
                    remedy="restore the tokenizer, or make the shards again with --overwrite",
                )

    def units(self) -> list[Unit]:
        tokens = {part.name: part for part in self._tokens.parts}
        units = []
        for part in self._logits.parts:
            if part.name not in tokens:
                continue  # the target's tokens cover the splits that training reads
            inputs = {"logits": join(self.logits, part.name), "tokens": join(self.tokens, part.name)}
            hashes = {"logits": part.sha256, "tokens": tokens[part.name].sha256}
            units.append(Unit(int(part.name[5:-8]), part.split, inputs, hashes))
        return units

    def provenance(self, unit: Unit) -> Provenance:
        config = {
            "map": self.mode,
            "ties": self._ties,
            "k": self.k,
            "span_matches": self.config.span_matches,
            "chain_rule": self.config.chain_rule,
        }
        return Provenance(self.kind, unit.split, config, unit.hashes, self._identity)

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        return differences(found, self.provenance(unit))

    @property
    def _ties(self) -> Ties:
        """Only an edit distance can be equally near to several."""
        return self.config.ties if self.mode == "mined" else "first"

    def vocab_map(self) -> VocabMap:
        """The map of this pair, built once and kept beside the parts as `vocab_map.parquet`."""
        path = join(self.output, "vocab_map.parquet")
        source, target = self.encoders()
        ties = self._ties
        cached = VocabMap.load_if_valid(path, source.table, target.table, self.mode, ties)
        if cached is not None:
            return cached
        if source.fingerprint == target.fingerprint:
            made = identity_map(source.table, self.mode, ties)
        else:
            made = build_vocab_map(source.table, target.table, self.mode, target.tokenizer, ties)
        made.save(path)
        return made

    def encoders(self) -> tuple[Encoder, Encoder]:
        """The source's and the target's."""
        return (
            load_encoder(self.source_path, self.source_revision),
            load_encoder(self.target_path, self.target_revision),
        )

    def worker(self) -> Worker:
        source, target = self.encoders()
        return AlignWorker(self, source, target, self.vocab_map())


@dataclass(frozen=True)
class AlignWorker:
    stage: AlignedStage
    source: Encoder
    target: Encoder
    vocab_map: VocabMap

    def __call__(self, unit: Unit) -> PartEntry:
        tokens, _ = read_part(unit.inputs["tokens"], "tokens", sha256=unit.hashes["tokens"])
        logits, _ = read_part(unit.inputs["logits"], "logits", sha256=unit.hashes["logits"])
        logits = match_rows(tokens, logits, unit.inputs["tokens"], unit.inputs["logits"])
        distributions = read_distributions(logits)
        (target_ids, target_ends), (source_ids, source_ends) = read_tokens(tokens), read_tokens(logits)
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
        source_index = np.concatenate([np.zeros(0, np.int64), *positions])
        token_nll = Ragged(read_token_nll(logits, distributions), source_ids.offsets)
        moves = None
        if self.stage.config.chain_rule:
            same_place = np.concatenate([np.zeros(0, np.uint8), *statuses]) == Status.EXACT_BOUNDARY
            exact = np.where(same_place, source_index, -1)
            map_ids = self.vocab_map.target_ids
            moves = chain_rule_moves(exact, target_ids, source_ids.values, token_nll.values, map_ids)
        projected, probs = project(distributions, source_index, self.vocab_map, self.stage.k, moves)
        nll = np.array([row.sum(dtype=np.float64) for row in _rows(token_nll)])
        covered = np.array([int(ends[-1] - ends[0]) if len(ends) else 0 for ends in _rows(source_ends)])
        table = tokens.select(["doc_id", "chunk", "text_hash"]).replace_schema_metadata(None)
        table = add_distributions(table, projected, target_ids.lengths())
        table = table.append_column("status", list_column(statuses, pa.uint8()))
        table = table.append_column("nll", pa.array(nll, pa.float64()))
        table = table.append_column("nll_bytes", pa.array(covered, pa.int32()))
        domains = tokens.column("domain").to_pylist()
        size = self.target.vocab_size
        aligned = source_index >= 0
        stats = {
            "status": _status_counts(statuses, domains),
            "fidelity": fidelity(domains, target_ids, target_ends, aligned, projected, probs, size, nll, covered),
        }
        path = join(self.stage.output, unit.part)
        return write_part(path, table, self.stage.provenance(unit), int(target_ids.values.size), stats)


def _rows(column: Ragged) -> Iterator[np.ndarray]:
    return (column.row(index) for index in range(len(column)))


def _status_counts(statuses: list[np.ndarray], domains: list[str]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for status, domain in zip(statuses, domains, strict=True):
        of_domain = counts.setdefault(domain, {member.name.lower(): 0 for member in Status})
        for member in Status:
            of_domain[member.name.lower()] += int((status == member).sum())
    return counts
