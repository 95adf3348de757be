"""The chain rule against a loop over chunks and positions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx.align.chain_rule import chain_rule_moves
from fusionx.align.positions import Status, align_positions
from fusionx.contract.shards.parts import Ragged
from fusionx.contract.tokens.token_table import TokenTable

NO_TABLE = TokenTable([], {}, frozenset(), "")


def ragged(rows: list[np.ndarray]) -> Ragged:
    return Ragged(np.concatenate([np.zeros(0, np.int32), *rows]), np.append(0, np.cumsum([len(row) for row in rows])))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000))
def test_equals_a_loop_over_positions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chunks, vocab = int(rng.integers(1, 4)), 6
    source_ends, target_ends, source_ids, target_ids, nlls, index = [], [], [], [], [], []
    first = 0
    for _ in range(chunks):
        length = int(rng.integers(0, 12))
        ends = [np.array(sorted({*rng.integers(1, length + 1, 5).tolist(), length})) if length else np.zeros(0, int)]
        ends.append(
            np.array(sorted({*rng.integers(1, length + 1, 5).tolist(), length})) if length else np.zeros(0, int)
        )
        source_ends.append(ends[0].astype(np.int32))
        target_ends.append(ends[1].astype(np.int32))
        source_ids.append(rng.integers(0, vocab + 1, len(ends[0])).astype(np.int32))  # one id is beyond the map
        target_ids.append(rng.integers(0, vocab, len(ends[1])).astype(np.int32))
        nlls.append(rng.random(len(ends[0])))
        found, status = align_positions(
            source_ends[-1], source_ids[-1], target_ends[-1], target_ids[-1], NO_TABLE, NO_TABLE
        )
        assert set(status.tolist()) <= {Status.NOT_ALIGNED, Status.EXACT_BOUNDARY}
        index.append(np.where(found >= 0, found + first, -1))
        first += len(ends[0])
    map_ids = rng.integers(-1, 9, vocab).astype(np.int32)
    moves = chain_rule_moves(
        np.concatenate(index), ragged(target_ids), ragged(source_ids).values, np.concatenate(nlls), map_ids
    )

    at = 0
    for chunk in range(chunks):
        place = {int(end): number for number, end in enumerate(source_ends[chunk])}
        for step in range(len(target_ends[chunk])):
            here, there = (
                place.get(int(target_ends[chunk][p])) if p < len(target_ends[chunk]) else None for p in (step, step + 1)
            )
            if here is None or there is None or there - here < 2:
                assert moves.mass[at] == 0
            else:
                product = math.prod(math.exp(-nlls[chunk][s]) for s in range(here, there))
                assert moves.mass[at] == pytest.approx(product, rel=1e-5)
                token = source_ids[chunk][here + 1]
                assert moves.giver[at] == (map_ids[token] if token < vocab else -1)
                assert moves.taker[at] == target_ids[chunk][step + 1]
            at += 1
