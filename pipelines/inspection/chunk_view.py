"""One chunk as the stages left it: its text, the target's tokens, and at each of their positions what every candidate
said of the next token, in its own shard and as it was aligned. Plain values; who shows them is `chunk_lines` and
`chunk_page`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fusionx.align.config import AlignMethod
from fusionx.align.explain import shown
from fusionx.align.positions import Status
from fusionx.contract.errors import ConfigError, DataError, FusionXError
from fusionx.contract.files.storage import join
from fusionx.contract.shards.codec import Distributions, probabilities, read_distributions, read_token_nll, read_tokens
from fusionx.contract.shards.manifest import read_manifest
from fusionx.contract.shards.parts import Ragged, match_rows, read_part
from fusionx.contract.tokens.chat import CHAT, messages_of
from fusionx.contract.tokens.encoder import load_encoder
from fusionx.contract.tokens.token_table import TokenTable
from fusionx.pipelines.inspection.gate import finished_training, fusion_weights, taught_methods, training_of
from fusionx.pipelines.pipeline import Pipeline
from fusionx.precompute.config import ModelConfig
from fusionx.train.config import TrainJob


class Entry(NamedTuple):
    """A token as `align.explain.shown` writes it. probability: of 1."""

    id: int
    token: str
    probability: float


@dataclass(frozen=True)
class Said:
    """A next-token distribution. entries: the most probable first. more: the mass of the stored entries that are not
    among them. tail: of all that are not stored."""

    entries: list[Entry]
    more: float
    tail: float


@dataclass(frozen=True)
class Opinion:
    """What one candidate says at one target position.

    read: the last of its own tokens that ends there or before, None where it has read none. agrees: whether that token
    ends just there. said: after it, over its own tokens. own_next: the text's next token of its own, with its exact
    probability. status: how the position was aligned. aligned: over the target's tokens, None where not aligned.
    label: the exact probability that this gives to the target's next token, None where it is not stored. weight: what
    the candidate weighs in the teacher, None where no training was asked.
    """

    candidate: str
    read: str | None
    agrees: bool
    said: Said | None
    own_next: Entry | None
    status: str
    aligned: Said | None
    label: float | None
    weight: float | None = None


@dataclass(frozen=True)
class Position:
    """A target position that has a next token. token: that it stands at. text: what the next token is in the text."""

    index: int
    token: str
    label: str
    label_id: int
    text: str
    opinions: list[Opinion]


@dataclass(frozen=True)
class ChunkView:
    """positions: those asked for, of `predicted`, the number that have a next token. method, seed: the training whose
    teacher gave the weights. note: why there are none.
    """

    part: str
    split: str
    row: int
    doc_id: int
    chunk: int
    domain: str
    text: str
    predicted: int
    alignment: str
    method: str | None
    seed: int | None
    note: str
    positions: list[Position]

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "positions": [_plain(one) for one in self.positions]}, ensure_ascii=False)


def _plain(position: Position) -> dict[str, object]:
    """With entries as objects, which `asdict` leaves as lists."""
    found = asdict(position)
    for opinion in found["opinions"]:
        for key in ("said", "aligned"):
            if opinion[key] is not None:
                opinion[key]["entries"] = [Entry(*entry)._asdict() for entry in opinion[key]["entries"]]
        if opinion["own_next"] is not None:
            opinion["own_next"] = Entry(*opinion["own_next"])._asdict()
    return found


class Place(NamedTuple):
    """Where a chunk is: in which part, of which split, and in which of its rows."""

    part: str
    split: str
    row: int


def chunk_of(
    pipeline: Pipeline,
    *,
    part: int | None = None,
    row: int = 0,
    key: tuple[int, int] | None = None,
    source: str | None = None,
    alignment: AlignMethod | None = None,
    method: str | None = None,
    positions: tuple[int, int] = (0, 16),
    top: int = 5,
) -> ChunkView:
    """Gathers one chunk.

    Args:
        part, row: where it is; without a part, the first that has a chunk. key: or its (doc_id, chunk).
        source: this candidate only. alignment: whose result; by default that which the method's training reads, or the
            run's first. method: whose teacher is asked; by default the first that is trained.
        positions: from, to (not included). top: entries shown of a distribution.

    Raises:
        ConfigError: no such part, chunk, source, method, or alignment. DataError: a part, manifest or training is
            missing, unfinished or damaged, or a tokenizer is another than when the parts were made.
    """
    config, layout = pipeline.config, pipeline.layout
    models = config.models if source is None else [pipeline.model(source)]
    if alignment is not None and alignment not in config.align.methods:
        raise ConfigError(
            "The run makes no such alignment.",
            field="--alignment",
            found=alignment,
            expected=", ".join(config.align.methods),
        )
    tokens_folder = layout.tokens(config.target.id)
    place = _place(tokens_folder, part, row, key)
    job, note = _training(pipeline, method, alignment)
    chosen = alignment or (job.method.alignment if job is not None else config.align.methods[0])
    for model in models:
        pipeline.aligned_stage(chosen, model).check()

    tokens = _part(tokens_folder, "tokens", "align", place.part).slice(place.row, 1)
    rows = _Rows(tokens, join(tokens_folder, place.part), place.part)
    stored = rows.of(layout.chunks, "chunks", "chunk").column("text")[0].as_py()
    text, read = _texts(stored, read_manifest(layout.chunks, "chunks", "chunk").config.get("format"))
    input_ids, ends = (column.values for column in read_tokens(tokens))
    weights = {} if job is None else fusion_weights(job, place.split, place.part, place.row)
    table = load_encoder(config.target.path, config.target.revision).table
    span = range(*slice(*positions).indices(max(0, len(input_ids) - 1)))
    opinions = []
    for model in models:
        own = rows.of(layout.logits(model.id), "logits", "precompute")
        aligned = rows.of(layout.aligned(config.target.id, chosen, model.id), "aligned", "align")
        found = _Candidate.of(model, own, aligned, table, top).opinions(span, input_ids, ends)
        of_gate = weights.get(model.id)
        opinions.append(
            [
                one if of_gate is None else replace(one, weight=float(of_gate[index]))
                for index, one in zip(span, found, strict=True)
            ]
        )
    data = read.encode()
    made = [
        Position(
            index,
            shown(table, int(input_ids[index])),
            shown(table, int(input_ids[index + 1])),
            int(input_ids[index + 1]),
            data[ends[index] : ends[index + 1]].decode("utf-8", "backslashreplace"),
            list(of_all),
        )
        for index, of_all in zip(span, zip(*opinions, strict=True), strict=True)
    ]
    return ChunkView(
        part=place.part,
        split=place.split,
        row=place.row,
        doc_id=tokens.column("doc_id")[0].as_py(),
        chunk=tokens.column("chunk")[0].as_py(),
        domain=tokens.column("domain")[0].as_py(),
        text=text,
        predicted=max(0, len(input_ids) - 1),
        alignment=chosen,
        method=None if job is None else job.method_name,
        seed=None if job is None else job.seed,
        note=note,
        positions=made,
    )


def _texts(stored: str, format_: str | None) -> tuple[str, str]:
    """A chunk's text as a person reads it, and that of which tokens' ends count the bytes: of a conversation its last
    message, the answer."""
    if format_ != CHAT:
        return stored, stored
    messages = messages_of(stored)
    return "\n\n".join(f"{one['role']}: {one['content']}" for one in messages), messages[-1]["content"]


def _training(pipeline: Pipeline, method: str | None, alignment: AlignMethod | None) -> tuple[TrainJob | None, str]:
    """The training whose teacher is asked, and if there is none, why."""
    config, layout = pipeline.config, pipeline.layout
    if method is not None:
        return training_of(config, layout, method, alignment), ""
    known = taught_methods(config, alignment)
    if not known:
        return None, "no method of the run has a teacher"
    try:
        job = finished_training(config, layout, known)
    except FusionXError as error:  # the shards can be looked at without it
        return None, f"no weights of a teacher: {error.problem}"
    return job, "" if job is not None else f"no weights of a teacher: {known[0]} is not trained yet"


def _place(folder: str, number: int | None, row: int, key: tuple[int, int] | None) -> Place:
    """
    Raises:
        ConfigError: there is no such part, row or key.
    """
    entries = read_manifest(folder, "tokens", "align").parts
    if key is not None:
        for entry in entries:
            table, _ = read_part(join(folder, entry.name), "tokens", ["doc_id", "chunk"], entry.sha256)
            keys = list(zip(*(table.column(name).to_pylist() for name in ("doc_id", "chunk")), strict=True))
            if key in keys:
                return Place(entry.name, entry.split, keys.index(key))
        raise ConfigError(
            "There is no such chunk.",
            file=folder,
            field="--chunk",
            found=f"{key[0]}:{key[1]}",
            expected="DOC:CHUNK, the numbers of a document of this run and of a chunk in it, both from 0",
        )
    if number is None:
        number = next((index for index, entry in enumerate(entries) if entry.rows > row), 0)
    if not 0 <= number < len(entries):
        raise ConfigError(
            "The run has no such part.", file=folder, field="--part", found=number, expected=f"0 to {len(entries) - 1}"
        )
    if not 0 <= row < entries[number].rows:
        raise ConfigError(
            "The part has no such row.",
            file=join(folder, entries[number].name),
            field="--row",
            found=row,
            expected=f"0 to {entries[number].rows - 1}" if entries[number].rows else "none: it has no chunk",
        )
    return Place(entries[number].name, entries[number].split, row)


def _part(folder: str, kind: str, stage: str, name: str) -> pa.Table:
    """
    Raises:
        DataError: the folder is unfinished, or its part is missing or damaged.
    """
    manifest = read_manifest(folder, kind, stage)
    entry = next((entry for entry in manifest.parts if entry.name == name), None)
    if entry is None:
        raise DataError(
            "A folder does not cover this part.",
            file=folder,
            found=f"no {name} among its {len(manifest.parts)} parts",
            remedy=f"add its split to precompute.splits and run `fusionx {stage}` again, or look at another part",
        )
    return read_part(join(folder, name), kind, sha256=entry.sha256)[0]


class _Rows(NamedTuple):
    """The row of one chunk, in every folder's part of its name."""

    tokens: pa.Table
    path: str
    part: str

    def of(self, folder: str, kind: str, stage: str) -> pa.Table:
        table = _part(folder, kind, stage, self.part)
        return match_rows(self.tokens, table, self.path, join(folder, self.part))


@dataclass(frozen=True)
class _Candidate:
    """One candidate's two rows. nll: float32 [T], nats of its own next tokens."""

    name: str
    table: TokenTable
    target: TokenTable
    input_ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    said: Distributions
    nll: npt.NDArray[np.float32]
    aligned: Distributions
    status: npt.NDArray[np.uint8]
    top: int

    @classmethod
    def of(cls, model: ModelConfig, own: pa.Table, aligned: pa.Table, target: TokenTable, top: int) -> _Candidate:
        said, (input_ids, ends) = read_distributions(own), read_tokens(own)
        return cls(
            model.id,
            load_encoder(model.path, model.revision).table,
            target,
            input_ids.values,
            ends.values,
            said,
            read_token_nll(own, said),
            read_distributions(aligned),
            Ragged.from_column(aligned.column("status")).values,
            top,
        )

    def opinions(
        self, span: Sequence[int], target_ids: npt.NDArray[np.int32], target_ends: npt.NDArray[np.int32]
    ) -> Iterator[Opinion]:
        for index in span:
            step = int(np.searchsorted(self.ends, target_ends[index], side="right")) - 1
            status = Status(int(self.status[index]))
            read = agrees = said = own_next = None
            if step >= 0:
                read = shown(self.table, int(self.input_ids[step]))
                agrees = bool(self.ends[step] == target_ends[index])
                said, _ = _shown_of(self.said[step : step + 1], self.table, self.top)
                if step + 1 < len(self.input_ids):
                    token = int(self.input_ids[step + 1])
                    own_next = Entry(token, shown(self.table, token), float(np.exp(-self.nll[step])))
            label = int(target_ids[index + 1])
            aligned, of_label = _shown_of(self.aligned[index : index + 1], self.target, self.top, label)
            spoke = status != Status.NOT_ALIGNED
            yield Opinion(
                self.name,
                read,
                bool(agrees),
                said,
                own_next,
                status.name.lower(),
                aligned if spoke else None,
                of_label if spoke else None,
            )


def _shown_of(one: Distributions, table: TokenTable, top: int, label: int = -1) -> tuple[Said, float | None]:
    """A single position's distribution, and the probability of `label` where it is stored."""
    probs = probabilities(one.logprobs[None], one.tail)[0].astype(float)
    entries = [
        Entry(int(token), shown(table, int(token)) if token < table.size else "<no token>", float(prob))
        for token, prob in zip(one.ids[:top], probs[:top], strict=True)
    ]
    (found,) = np.nonzero(one.ids == label)
    said = Said(entries, float(probs[top:].sum()), float(one.tail[0]))
    return said, float(probs[found[0]]) if len(found) else None
