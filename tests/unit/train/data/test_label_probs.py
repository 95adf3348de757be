"""The stored probability of the next token, which every sample has, however few entries a training reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shard_builder import Chunk, random_parts, write_set

from fusionx.train.data.shard_stream import ShardSet

CANDIDATES = ["target", "left", "right"]


@pytest.mark.parametrize("k", [1, 2, 3, None])
def test_the_next_tokens_probability_is_the_stored_one_however_few_entries_are_read(
    k: int | None, tmp_path: Path
) -> None:
    """Of every candidate the next token is among the entries, at a rank of its own, or not at all."""
    rng = np.random.default_rng(3)

    def with_labels(row: Chunk) -> Chunk:
        moved = {}
        for rank, (name, said) in enumerate(row.said.items(), start=1):
            ids = np.where(said.ids == np.append(row.input_ids[1:], -1)[:, None], (said.ids + 1) % 299, said.ids)
            ids[:-1, rank] = np.where(rng.random(len(ids) - 1) < 0.5, row.input_ids[1:], ids[:-1, rank])
            moved[name] = replace(said, ids=np.where(said.probs > 0, ids, -1).astype(np.int32))
        return replace(row, said=moved)

    changed = [(split, [with_labels(row) for row in rows]) for split, rows in random_parts([3, 1, 4], CANDIDATES)]
    tokens, aligned = write_set(tmp_path, changed, CANDIDATES)
    shards, whole = ShardSet(tokens, aligned, "train", k), ShardSet(tokens, aligned, "train")
    written = {(row.doc_id, row.chunk): row for _, rows in changed for row in rows}
    known = set()
    for part, row in ((part, row) for part, rows in enumerate(shards.rows) for row in range(rows)):
        sample, stored = shards.sample(part, row), whole.sample(part, row)
        assert sample.label_probs.dtype == np.float32
        assert sample.label_probs.shape == (len(sample.input_ids), len(CANDIDATES))
        assert np.isnan(sample.label_probs[-1]).all(), "no token comes after the last"
        for j, name in enumerate(CANDIDATES):
            ids = written[sample.key].said[name].ids
            for at, label in enumerate(sample.input_ids[1:].tolist()):
                ranks = np.flatnonzero(ids[at] == label).tolist()
                expected = stored.probs[at, j, ranks[0]] if ranks else np.nan
                np.testing.assert_equal(sample.label_probs[at, j], expected)
                known.update((j, rank) for rank in ranks)
    assert {(0, 1), (1, 2), (2, 3)} <= known
