"""The align stage: one source's top-k shards into the target's positions and vocabulary. One unit is one part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fusionx.align.config import AlignConfig, AlignMethod
from fusionx.align.fidelity import Gold, calibration, fidelity, judged_split
from fusionx.align.positions import Status, align_positions
from fusionx.align.projection import project
from fusionx.align.vocabulary.vocab_map import Mode, VocabMap, build_vocab_map, identity_map
from fusionx.align.walk import RULES
from fusionx.contract.errors import DataError
from fusionx.contract.files.storage import join
from fusionx.contract.shards.codec import (
    Distributions,
    add_distributions,
    read_distributions,
    read_token_nll,
    read_tokens,
)
from fusionx.contract.shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from fusionx.contract.shards.next_token import gold_probabilities, next_tokens
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

if TYPE_CHECKING:
    from fusionx.align.walk.lexicon import Lexicon


@dataclass(frozen=True)
class AlignedStage:
    """Brings the shards in `logits` to the target tokens in `tokens`. `source` and `target` are model folders.

    `target_logits`: the target's own shards, which the walk fills in from where the source says nothing more.
    """

    source: str
    source_path: str
    source_revision: str | None
    target: str
    target_path: str
    target_revision: str | None
    method: AlignMethod
    config: AlignConfig
    logits: str
    target_logits: str
    tokens: str
    output: str

    kind = "aligned"

    @property
    def name(self) -> str:
        return f"align/{self.method}/{self.source}"

    @property
    def resources(self) -> Resources:
        return Resources(workers=self.config.workers)

    @cached_property
    def _logits(self) -> Manifest:
        return read_manifest(self.logits, "logits", "precompute")

    @cached_property
    def _target_logits(self) -> Manifest:
        return read_manifest(self.target_logits, "logits", "precompute")

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
        checked = [
            ("source", self.source_path, self.source_revision, self.logits, self._identity["source_fingerprint"]),
            ("target", self.target_path, self.target_revision, self.tokens, self._identity["target_fingerprint"]),
        ]
        if self._is_filled:
            fingerprint = self._target_logits.identity["fingerprint"]
            checked.append(("target", self.target_path, self.target_revision, self.target_logits, fingerprint))
        for role, path, revision, folder, recorded in checked:
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

    @property
    def _is_filled(self) -> bool:
        """Only the walk asks what the target itself expects; of a tokenizer onto itself it has nothing to ask."""
        same = self._identity["source_fingerprint"] == self._identity["target_fingerprint"]
        return self.method == "walk" and not same

    def units(self) -> list[Unit]:
        inputs = {"logits": (self.logits, self._logits), "tokens": (self.tokens, self._tokens)}
        if self._is_filled:
            inputs["target_logits"] = (self.target_logits, self._target_logits)
        parts = {kind: {part.name: part for part in manifest.parts} for kind, (_, manifest) in inputs.items()}
        units = []
        for part in self._logits.parts:
            if part.name not in parts["tokens"]:
                continue  # the target's tokens cover the splits that training reads
            if any(part.name not in of_kind for of_kind in parts.values()):
                raise DataError(
                    "The target's own shards do not cover the source's.",
                    file=self.target_logits,
                    found=f"no {part.name}",
                    expected=f"the parts of {self.logits}",
                    remedy="run `fusionx precompute` for the target",
                )
            files = {kind: join(folder, part.name) for kind, (folder, _) in inputs.items()}
            hashes = {kind: parts[kind][part.name].sha256 for kind in inputs}
            units.append(Unit(int(part.name[5:-8]), part.split, files, hashes))
        return units

    def provenance(self, unit: Unit) -> Provenance:
        config = {"method": self.method, "k": self.k}
        if self.method == "walk":
            config["rules"] = RULES
        return Provenance(self.kind, unit.split, config, unit.hashes, self._identity)

    def differences(self, found: Provenance, unit: Unit) -> list[str]:
        return differences(found, self.provenance(unit))

    def is_judged(self, unit: Unit) -> bool:
        """Whether what alignment costs is measured on this part (`align.fidelity.held_out`)."""
        return unit.split == judged_split([part.split for part in self._logits.parts])

    def vocab_map(self) -> VocabMap:
        """The map of this pair, built once and kept beside the parts as `vocab_map.parquet`."""
        path = join(self.output, "vocab_map.parquet")
        source, target = self.encoders()
        mode: Mode = "exact" if self.method == "exact" else "mined"
        cached = VocabMap.load_if_valid(path, source.table, target.table, mode)
        if cached is not None:
            return cached
        same = source.fingerprint == target.fingerprint
        made = identity_map(source.table, mode) if same else build_vocab_map(source.table, target.table, mode)
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
        if self.method != "walk":
            return AlignWorker(self, source, target, self.vocab_map())
        from fusionx.align.walk.lexicon import Lexicon

        return AlignWorker(self, source, target, Lexicon(source, target))


@dataclass(frozen=True)
class AlignWorker:
    """`means`: what brings the source's tokens to the target's: a map, or the walk's lexicon."""

    stage: AlignedStage
    source: Encoder
    target: Encoder
    means: VocabMap | Lexicon

    def __call__(self, unit: Unit) -> PartEntry:
        inputs = self.read(unit)
        said, probs, status, gold = self.align(inputs, self.stage.is_judged(unit))
        domains = inputs.tokens.column("domain").to_pylist()
        ends = inputs.source_ends
        nll = np.add.reduceat(np.append(inputs.token_nll, 0.0).astype(np.float64), ends.offsets[:-1])
        nll = np.where(ends.lengths() > 0, nll, 0.0)
        covered = [int(row[-1] - row[0]) if len(row) else 0 for row in map(ends.row, range(len(ends)))]
        table = inputs.tokens.select(["doc_id", "chunk", "text_hash"]).replace_schema_metadata(None)
        table = add_distributions(table, said, inputs.target_ids.lengths())
        rows = np.split(status, inputs.target_ids.offsets[1:-1]) if len(inputs.target_ids) else []
        table = table.append_column("status", list_column(rows, pa.uint8()))
        table = table.append_column("nll", pa.array(nll, pa.float64()))
        table = table.append_column("nll_bytes", pa.array(covered, pa.int32()))
        labels, _ = next_tokens(inputs.target_ids, inputs.target_ends)
        stats: dict[str, Any] = {"status": _status_counts(status, labels >= 0, inputs.target_ids, domains)}
        if gold is not None:
            own_labels, _ = next_tokens(inputs.source_ids, inputs.source_ends)
            own_said = inputs.source
            own_probs = np.exp(own_said.logprobs.astype(np.float32))
            lengths, own_lengths = self.target.table.byte_lengths, self.source.table.byte_lengths
            stats["fidelity"] = fidelity(
                domains, inputs.target_ids, inputs.target_ends, gold, inputs.source_ends, inputs.token_nll
            )
            stats["calibration"] = calibration(said, probs, gold.judged, labels, lengths)
            stats["own_calibration"] = calibration(own_said, own_probs, own_labels >= 0, own_labels, own_lengths)
        path = join(self.stage.output, unit.part)
        return write_part(path, table, self.stage.provenance(unit), int(inputs.target_ids.values.size), stats)

    def align(
        self, inputs: AlignInputs, judged: bool
    ) -> tuple[Distributions, npt.NDArray[np.float32], npt.NDArray[np.uint8], Gold | None]:
        """The target's distributions with their unrounded probabilities, the status of every position, and how the next
        tokens fare, where that is asked for."""
        if isinstance(self.means, VocabMap):
            return self._mapped(inputs, self.means, judged)
        return self._walked(inputs, self.means, judged)

    def _walked(
        self, inputs: AlignInputs, lexicon: Lexicon, judged: bool
    ) -> tuple[Distributions, npt.NDArray[np.float32], npt.NDArray[np.uint8], Gold | None]:
        from fusionx.align.walk.part import PartWalk, spoken

        part = PartWalk(
            lexicon,
            inputs.target_ids,
            inputs.target_ends,
            inputs.source_ids,
            inputs.source_ends,
            inputs.source,
            inputs.token_nll,
        )
        fill = None if inputs.target is None else spoken(inputs.target, self.target.vocab_size)
        walked = part.distributions(fill, self.stage.k)
        said = walked.stored()
        gold = None
        if judged:
            alone = part.distributions(None, 1).label if fill is not None else walked.label
            labels, _ = next_tokens(inputs.target_ids, inputs.target_ends)
            best = np.append(said.ids, -1)[said.starts[:-1]]
            known = np.isfinite(walked.label) & (walked.label > 0) & (alone > 0)
            hit, blind_hit = (said.counts > 0) & (best == labels), (labels >= 0) & (part.foretold(fill) == labels)
            gold = Gold(known, alone, walked.label, hit, blind_hit)
        return said, walked.probs, walked.status, gold

    def _mapped(
        self, inputs: AlignInputs, vocab_map: VocabMap, judged: bool
    ) -> tuple[Distributions, npt.NDArray[np.float32], npt.NDArray[np.uint8], Gold | None]:
        statuses, positions = [np.zeros(0, np.uint8)], [np.zeros(0, np.int64)]
        for row in range(len(inputs.target_ids)):
            index, status = align_positions(
                inputs.source_ends.row(row),
                inputs.source_ids.row(row),
                inputs.target_ends.row(row),
                inputs.target_ids.row(row),
                self.source.table,
                self.target.table,
                vocab_map if self.stage.method == "mined" else None,
            )
            # Row-wise positions become positions in the whole part's flat arrays.
            positions.append(np.where(index >= 0, index + inputs.source_ids.offsets[row], -1))
            statuses.append(status)
        source_index = np.concatenate(positions)
        said, probs = project(inputs.source, source_index, vocab_map, self.stage.k)
        gold = None
        if judged:
            labels, _ = next_tokens(inputs.target_ids, inputs.target_ends)
            found, hit = gold_probabilities(said, probs, labels, self.target.vocab_size)
            gold = Gold((source_index >= 0) & (labels >= 0), found, found, hit, hit)  # a map never looks at the text
        return said, probs, np.concatenate(statuses), gold

    def read(self, unit: Unit) -> AlignInputs:
        """The unit's columns, row by row the same texts."""
        tokens, _ = read_part(unit.inputs["tokens"], "tokens", sha256=unit.hashes["tokens"])
        source, target = (self._matched(unit, kind, tokens) for kind in ("logits", "target_logits"))
        assert source is not None
        said = read_distributions(source)
        return AlignInputs(
            tokens,
            *read_tokens(tokens),
            *read_tokens(source),
            said,
            read_token_nll(source, said),
            None if target is None else read_distributions(target),
        )

    @staticmethod
    def _matched(unit: Unit, kind: str, tokens: pa.Table) -> pa.Table | None:
        """The rows of the unit's `kind` of input, in the order of `tokens`; None where it has none."""
        if kind not in unit.inputs:
            return None
        table, _ = read_part(unit.inputs[kind], "logits", sha256=unit.hashes[kind])
        return match_rows(tokens, table, unit.inputs["tokens"], unit.inputs[kind])


@dataclass(frozen=True)
class AlignInputs:
    """One part's columns. source, target: distributions at the source's positions, and the target's own at its."""

    tokens: pa.Table
    target_ids: Ragged
    target_ends: Ragged
    source_ids: Ragged
    source_ends: Ragged
    source: Distributions
    token_nll: npt.NDArray[np.float32]
    target: Distributions | None


def _status_counts(
    status: npt.NDArray[np.uint8], counted: npt.NDArray[np.bool_], input_ids: Ragged, domains: list[str]
) -> dict[str, dict[str, int]]:
    """Domain -> status -> how many of the `counted` positions have it."""
    which = np.repeat(np.array(domains, dtype=object), input_ids.lengths())[counted]
    return {
        domain: {
            member.name.lower(): int(np.count_nonzero(status[counted][which == domain] == member)) for member in Status
        }
        for domain in sorted(set(domains))
    }
