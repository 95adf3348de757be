"""The end of a document as a label: found in the target's own distributions, taught, and no part of any measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from shard_builder import Parts, corpus_parts, make_job, write_set, write_tiny_model, write_tokens
from trainings import ALONE, CANDIDATES

from fusionx.contract.shards.codec import Distributions, add_distributions, add_token_nll, add_tokens
from fusionx.contract.shards.document_end import document_end
from fusionx.contract.shards.manifest import build_manifest, write_manifest
from fusionx.contract.shards.parts import Provenance, write_part
from fusionx.train.data.collate import collate_blocks
from fusionx.train.data.shard_stream import ShardSet
from fusionx.train.loop.trainer import Trainer

END = 7


def two_chunks_each(parts: Parts) -> Parts:
    """Neighbouring rows as the two chunks of one document."""
    return [
        (split, [replace(row, doc_id=number // 2, chunk=number % 2) for number, row in enumerate(rows)])
        for split, rows in parts
    ]


@pytest.mark.parametrize("document_mask", [True, False])
def test_only_the_last_chunk_of_a_document_predicts_its_end(tmp_path: Path, document_mask: bool) -> None:
    model = write_tiny_model(tmp_path / "model")
    parts = two_chunks_each(corpus_parts(model, CANDIDATES, rows=(4,)))
    tokens, aligned = write_set(tmp_path, parts, CANDIDATES)
    plain, ended = (ShardSet(tokens, aligned, "train", end_id=end_id) for end_id in (None, END))
    samples = [ended.sample(0, row) for row in range(4)]
    assert [sample.end_id for sample in samples] == [None, END, None, END]
    assert [plain.sample(0, row).end_id for row in range(4)] == [None] * 4
    batch = collate_blocks([samples[:3], samples[3:]], 0, document_mask)
    labels = [[*sample.input_ids[1:], *([END] if sample.end_id else [])] for sample in samples]
    assert batch.labels.tolist() == [label for row in labels for label in row]
    starts = [*np.cumsum([0, *(len(sample.input_ids) for sample in samples[:2])]).tolist(), batch.input_ids.shape[1]]
    places = [start + at for start, row in zip(starts, labels, strict=True) for at in range(len(row))]
    assert batch.positions.tolist() == places
    assert batch.candidates is not None
    assert batch.candidates.chunk_of.tolist() == [number for number, row in enumerate(labels) for _ in row]
    at = len(labels[0]) + len(labels[1]) - 1
    np.testing.assert_array_equal(batch.candidates.ids[at], samples[1].ids[-1])
    is_end = samples[1].ids[-1] == END
    stored = np.where(is_end.any(1), np.where(is_end, samples[1].probs[-1], 0).sum(1), np.nan)
    np.testing.assert_allclose(samples[1].label_probs[-1], stored, rtol=1e-6)


def test_a_target_that_is_taught_the_end_expects_it_there_and_another_does_not(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    tokens = write_tokens(tmp_path / "tokens", corpus_parts(model, []))
    ends, bits = [], []
    for end_id in (None, END):
        job = make_job(model, tokens, {}, tmp_path / f"out-{end_id}", "ct", optimizer={"epochs": 12})
        trainer = Trainer(job.model_copy(update={"end_id": end_id}), ALONE)
        bits.append(trainer.validation(trainer.target, ALONE, None, 32)["bits_per_byte"])
        trainer.run()
        ids = torch.from_numpy(ShardSet(tokens, {}, "train").sample(0, 0).input_ids).long()[None]
        with torch.no_grad():
            ends.append(float(trainer.target.model.eval()(ids).logits[0, -1].softmax(-1)[END]))  # type: ignore[operator]
    assert bits[0] == bits[1], "the end is no part of the measure"
    assert ends[0] < 0.01
    assert ends[1] > 0.1


def write_said(folder: Path, at_end: float, elsewhere: float) -> tuple[str, str]:
    """Six documents of two chunks of five tokens; the model gives the end token `at_end` where a document ends."""
    mass = np.array([[at_end if row % 2 and place == 4 else elsewhere for place in range(5)] for row in range(12)])
    ids = np.tile([3, END], (60, 1)).astype(np.int32)
    probs = np.stack([0.5 * (1 - mass.ravel()), mass.ravel()], axis=1)
    said = Distributions.from_padded(ids, np.log(np.maximum(probs, 1e-9)), np.full(60, 2), 1 - probs.sum(1))
    keys = {"doc_id": [row // 2 for row in range(12)], "chunk": [row % 2 for row in range(12)]}
    table = pa.table({**keys, "text_hash": [""] * 12}).cast(
        pa.schema([("doc_id", pa.int64()), ("chunk", pa.int32()), ("text_hash", pa.string())])
    )
    table = add_tokens(table, [np.full(5, 4, np.int32)] * 12, [np.arange(5, dtype=np.int32)] * 12)
    table = add_token_nll(add_distributions(table, said, [5] * 12), np.zeros(60))
    entry = write_part(f"{folder}/part-00000.parquet", table, Provenance("logits", "train", {"k": 2}, {}), 60)
    manifest = build_manifest("logits", {"k": 2}, {"source": "m"}, [entry])
    write_manifest(str(folder), manifest)
    return str(folder), manifest.digest


def test_the_end_is_what_the_target_itself_expects_where_documents_end(tmp_path: Path) -> None:
    special = frozenset({0, END})
    assert document_end(*write_said(tmp_path / "trained", 0.7, 0.001), special) == END
    assert document_end(*write_said(tmp_path / "trained", 0.7, 0.001), frozenset({0})) is None
    assert document_end(*write_said(tmp_path / "never", 0.004, 0.003), special) is None
    assert document_end(*write_said(tmp_path / "everywhere", 0.3, 0.2), special) is None
