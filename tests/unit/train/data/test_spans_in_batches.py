"""Spans of likelihood matching, from logits shards to samples and batches, against plain loops over bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fusion_oracles import byte_spans, nll_of
from shard_builder import Parts, random_parts, write_logits, write_set

from fusionx.contract.errors import DataError
from fusionx.contract.shards.codec import read_distributions, read_token_nll, read_tokens
from fusionx.contract.shards.parts import Ragged, part_name, read_part
from fusionx.train.data.collate import collate_blocks
from fusionx.train.data.loader import StepBatches, loader
from fusionx.train.data.shard_stream import Sample, ShardSet


@pytest.fixture(scope="module")
def parts_and_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parts, str, dict[str, str], dict[str, str]]:
    folder, parts = tmp_path_factory.mktemp("spans"), random_parts([4, 3, 5], ["left", "right"])
    tokens, aligned = write_set(folder, parts, ["left", "right"])
    return parts, tokens, aligned, {name: write_logits(folder / "logits" / name, parts, name) for name in aligned}


def samples_of(shards: ShardSet) -> list[Sample]:
    return [shards.sample(part, row) for part, rows in enumerate(shards.rows) for row in range(rows)]


def test_samples_carry_what_the_logits_say(parts_and_folders: Any) -> None:
    _, tokens, aligned, logits = parts_and_folders
    shards = ShardSet(tokens, aligned, "train", logits=logits)
    without = samples_of(ShardSet(tokens, aligned, "train"))
    assert {sample.spans for sample in without} == {None}
    assert set(shards.digests()) == {"tokens", "left", "right", "logits/left", "logits/right"}
    some = 0
    for j, folder in enumerate(logits.values()):
        samples = iter(samples_of(shards))
        for part in range(3):
            table, _ = read_part(f"{folder}/{part_name(part)}", "logits")
            _, ends = read_tokens(table)
            nll = Ragged(read_token_nll(table, read_distributions(table)), ends.offsets)
            for row in range(len(ends)):
                sample = next(samples)
                assert sample.spans is not None
                own = sample.spans.candidates == j
                spans = byte_spans(ends.row(row).tolist(), sample.ends.tolist())
                some += len(spans)
                expected = [nll_of(span, ends.row(row).tolist(), nll.row(row).tolist()) for span in spans]
                np.testing.assert_allclose(sample.spans.nll[own], expected, rtol=1e-6)
                bytes_of = zip(sample.ends[sample.spans.starts[own]], sample.ends[sample.spans.stops[own]], strict=True)
                assert list(bytes_of) == spans
    assert some > 30


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_carry_the_spans_of_their_chunks(parts_and_folders: Any, workers: int) -> None:
    """Counted over the batch's positions, in packed rows too, and through a worker process."""
    _, tokens, aligned, logits = parts_and_folders
    shards = ShardSet(tokens, aligned, "train", logits=logits)
    order = shards.order(0, pack=24)
    for step, (batch,) in enumerate(loader(StepBatches(shards, order, 3, 0), 0, 2, workers)):
        samples = [shards.sample(*place) for index in range(3 * step, 3 * step + 3) for place in order.block(index)]
        assert batch.spans is not None
        found = list(zip(*(column.tolist() for column in batch.spans), strict=True))
        expected, first = [], 0
        for sample in samples:
            assert sample.spans is not None
            for start, stop, candidate, nll in zip(*sample.spans, strict=True):
                assert stop < len(sample.input_ids)
                expected.append((first + start, first + stop, candidate, nll))
            first += max(0, len(sample.input_ids) - 1)
        assert found == expected
        assert batch.to(torch.device("cpu")).spans is not None


def test_batches_of_other_methods_have_no_spans(parts_and_folders: Any) -> None:
    _, tokens, aligned, _ = parts_and_folders
    assert collate_blocks([samples_of(ShardSet(tokens, aligned, "train"))], 0).spans is None


def test_refuses_logits_that_lack_a_part(parts_and_folders: Any, tmp_path: Path) -> None:
    parts, tokens, aligned, logits = parts_and_folders
    logits = {**logits, "left": write_logits(tmp_path, parts, "left", skip_part=1)}
    with pytest.raises(DataError, match=r"logits shards of 'left'[\s\S]*part-00001.parquet") as caught:
        ShardSet(tokens, aligned, "train", logits=logits)
    assert caught.value.details["file"] == str(tmp_path)
