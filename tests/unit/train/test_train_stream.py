"""The stream of samples: order, resuming, what it refuses; and the collation of samples into a batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_builder import (
    Chunk,
    Parts,
    Said,
    random_chunk,
    random_parts,
    with_text,
    write_aligned,
    write_set,
    write_tokens,
)

from contract.errors import DataError
from train.collate import collate
from train.losses import run_head
from train.stream import BatchStream, Sample, ShardSet, epoch_order

CANDIDATES = ["target", "left", "right"]
ROWS = [3, 1, 4, 0, 2, 5, 1, 2, 3, 4, 2]  # more parts than a shuffling window, one of them empty


@pytest.fixture(scope="module")
def parts() -> Parts:
    return random_parts(ROWS, CANDIDATES)


@pytest.fixture(scope="module")
def shards(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet(*write_set(tmp_path_factory.mktemp("set"), parts, CANDIDATES), "train")


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.integers(0, 9), min_size=1, max_size=20), seed=st.integers(0, 2**31), epoch=st.integers(0, 99))
def test_an_epoch_is_a_permutation(rows: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(rows, seed, epoch)
    assert sorted(map(tuple, order.tolist())) == [
        (part, row) for part, count in enumerate(rows) for row in range(count)
    ]
    assert np.array_equal(order, epoch_order(rows, seed, epoch))


def test_epochs_and_seeds_differ() -> None:
    orders = [epoch_order([9] * 4, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({str(order) for order in orders}) == 4


def test_a_window_bounds_the_parts_in_use() -> None:
    order = epoch_order([5] * 24, 0, 0)
    for start in range(0, 120, 40):
        assert len(set(order[start : start + 40, 0].tolist())) == 8


def assert_same_sample(left: Sample, right: Sample) -> None:
    assert (left.key, left.domain) == (right.key, right.domain)
    for name in ("input_ids", "ends", "ids", "probs", "status", "nll_per_byte"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def chunks_by_key(parts: Parts) -> dict[tuple[int, int], Chunk]:
    return {(row.doc_id, row.chunk): row for _, rows in parts for row in rows}


def test_samples_are_what_was_written(shards: ShardSet, parts: Parts) -> None:
    written = chunks_by_key(parts)
    seen = []
    for part, rows in enumerate(shards.rows):
        for row in range(rows):
            sample = shards.sample(part, row)
            chunk = written[sample.key]
            seen.append(sample.key)
            np.testing.assert_array_equal(sample.input_ids, chunk.input_ids)
            np.testing.assert_array_equal(sample.ends, chunk.ends)
            for j, name in enumerate(CANDIDATES):
                said = chunk.said[name]
                np.testing.assert_array_equal(sample.ids[j], said.ids)
                np.testing.assert_allclose(sample.probs[j], said.probs, rtol=4e-3)  # fp16 log-probabilities
                aligned = said.status > 0
                np.testing.assert_allclose(  # nearer than the rounded entries alone would be
                    sample.probs[j][aligned].sum(axis=1), said.probs[aligned].sum(axis=1), rtol=0, atol=3e-4
                )
                np.testing.assert_array_equal(sample.status[j], chunk.said[name].status)
                assert sample.nll_per_byte[j] == np.float32(chunk.said[name].nll / 20)
    assert sorted(seen) == sorted((r.doc_id, r.chunk) for split, rows in parts if split == "train" for r in rows)


def test_candidates_of_different_k_are_filled_up_to_the_largest(parts: Parts, tmp_path: Path) -> None:
    def cut(said: Said) -> Said:
        return replace(said, ids=said.ids[:, :2], probs=said.probs[:, :2])

    narrow = [
        (split, [replace(row, said={**row.said, "left": cut(row.said["left"])}) for row in rows])
        for split, rows in parts
    ]
    wide = ShardSet(*write_set(tmp_path / "wide", parts, CANDIDATES), "train").sample(0, 0)
    sample = ShardSet(*write_set(tmp_path / "narrow", narrow, CANDIDATES), "train").sample(0, 0)
    left = CANDIDATES.index("left")
    assert sample.ids.shape == wide.ids.shape
    np.testing.assert_array_equal(sample.ids[left, :, :2], wide.ids[left, :, :2])
    assert (sample.ids[left, :, 2:] == -1).all()
    assert not sample.probs[left, :, 2:].any()
    np.testing.assert_array_equal(np.delete(sample.probs, left, 0), np.delete(wide.probs, left, 0))


def test_rows_are_joined_by_key_not_by_place(parts: Parts, tmp_path: Path) -> None:
    backwards = [(split, rows[::-1]) for split, rows in parts]
    tokens, aligned = write_set(tmp_path / "a", parts, CANDIDATES)
    aligned["left"] = write_aligned(tmp_path / "backwards", backwards, "left")
    ordered = ShardSet(*write_set(tmp_path / "b", parts, CANDIDATES), "train")
    for part, rows in enumerate(ordered.rows):
        for row in range(rows):
            assert_same_sample(ShardSet(tokens, aligned, "train").sample(part, row), ordered.sample(part, row))


@pytest.mark.parametrize("batch_size", [1, 4, 27, 30])
def test_a_resumed_stream_gives_the_same_batches(shards: ShardSet, batch_size: int) -> None:
    whole = list(islice(BatchStream(shards, batch_size, seed=3), 9))
    for done in range(9):
        stream = BatchStream(shards, batch_size, seed=3, taken=done * batch_size)
        for expected, found in zip(whole[done:], islice(stream, 9 - done), strict=True):
            for left, right in zip(expected, found, strict=True):
                assert_same_sample(left, right)
        assert stream.taken == 9 * batch_size


def test_every_epoch_sees_every_chunk_once(shards: ShardSet) -> None:
    stream = BatchStream(shards, 1, seed=0)
    for _ in range(3):
        keys = [batch[0].key for batch in islice(stream, stream.samples_per_epoch)]
        assert len(set(keys)) == stream.samples_per_epoch == sum(ROWS)


def test_a_stream_without_candidates(parts: Parts, tmp_path: Path) -> None:
    shards = ShardSet(write_tokens(tmp_path, parts), {}, "train")
    sample = shards.sample(0, 0)
    assert sample.ids.shape == (0, 0, 0)
    assert collate([sample], 0).candidates is None


def test_an_nll_over_no_byte_is_unknown(tmp_path: Path) -> None:
    from dataclasses import replace

    rng = np.random.default_rng(0)
    chunk = random_chunk(rng, 0, ["a"], 5)
    chunk = replace(chunk, said={"a": replace(chunk.said["a"], nll=0.0, nll_bytes=0)})
    shards = ShardSet(*write_set(tmp_path, [("train", [chunk])], ["a"]), "train")
    assert np.isnan(shards.sample(0, 0).nll_per_byte).all()


def test_refuses_a_part_that_no_candidate_has(parts: Parts, tmp_path: Path) -> None:
    tokens, aligned = write_set(tmp_path, parts, ["target"])
    aligned["left"] = write_aligned(tmp_path / "left", parts, "left", skip_part=2)
    with pytest.raises(DataError, match=r"part-00002.parquet") as caught:
        ShardSet(tokens, aligned, "train")
    assert caught.value.details["file"] == aligned["left"]


def test_refuses_a_missing_file(parts: Parts, tmp_path: Path) -> None:
    tokens, aligned = write_set(tmp_path, parts, ["left"])
    (tmp_path / "left" / "part-00004.parquet").unlink()
    with pytest.raises(DataError, match=r"left/part-00004.parquet"):
        ShardSet(tokens, aligned, "train").sample(4, 0)


@pytest.mark.parametrize("folder", ["tokens", "left"])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_refuses_a_flipped_byte(parts: Parts, tmp_path: Path, folder: str, place: float) -> None:
    tokens, aligned = write_set(tmp_path, parts, ["left"])
    path = tmp_path / folder / "part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 4
    path.write_bytes(data)
    shards = ShardSet(tokens, aligned, "train")
    with pytest.raises(DataError, match=f"{folder}/part-00000.parquet"):
        shards.sample(0, 0)
    assert shards.sample(1, 0).key[0] == 3  # the others are read


def test_refuses_another_text_under_the_same_key(parts: Parts, tmp_path: Path) -> None:
    tokens, aligned = write_set(tmp_path, parts, ["target", "left"])
    aligned["left"] = write_aligned(tmp_path / "other", with_text(parts, 1, "another text"), "left")
    with pytest.raises(DataError, match=r"other/part-00000.parquet") as caught:
        ShardSet(tokens, aligned, "train").sample(0, 0)
    assert caught.value.details["field"] == "text_hash"


def test_refuses_a_missing_chunk(parts: Parts, tmp_path: Path) -> None:
    tokens, aligned = write_set(tmp_path, parts, ["target", "left"])
    fewer = [(split, rows[:-1] if index == 0 else rows) for index, (split, rows) in enumerate(parts)]
    aligned["left"] = write_aligned(tmp_path / "fewer", fewer, "left")
    with pytest.raises(DataError, match=r"fewer/part-00000.parquet"):
        ShardSet(tokens, aligned, "train").sample(0, 0)


def test_refuses_an_unfinished_or_mistaken_input(parts: Parts, tmp_path: Path) -> None:
    tokens, aligned = write_set(tmp_path, parts, ["left"])
    with pytest.raises(DataError, match="aligned"):
        ShardSet(tokens, {"left": tokens}, "train")
    (tmp_path / "left" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"left/manifest.json"):
        ShardSet(tokens, aligned, "train")


def test_refuses_a_split_without_chunks(parts: Parts, tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "none", [part for part in parts if part[0] == "train"])
    with pytest.raises(DataError, match="validation") as caught:
        ShardSet(tokens, {}, "validation")
    assert caught.value.details["file"] == tokens
    hollow = write_tokens(tmp_path / "hollow", [*parts, ("test", [])])
    with pytest.raises(DataError, match="test"):
        ShardSet(hollow, {}, "test")


# Collation


def samples_of(lengths: list[int], seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    chunks = [random_chunk(rng, index, ["a", "b"], length) for index, length in enumerate(lengths)]
    return [
        Sample(
            (chunk.doc_id, chunk.chunk),
            chunk.domain,
            chunk.input_ids,
            chunk.ends,
            np.stack([chunk.said[name].ids for name in ("a", "b")]),
            np.stack([chunk.said[name].probs for name in ("a", "b")]),
            np.stack([chunk.said[name].status for name in ("a", "b")]),
            np.array([1.0, 2.0 + index], np.float32),
        )
        for index, chunk in enumerate(chunks)
    ]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(lambda found: max(found) > 0))
def test_position_l_meets_the_token_after_it(lengths: list[int]) -> None:
    samples = samples_of(lengths)
    batch = collate(samples, pad_id=7)
    assert batch.candidates is not None
    places = [(row, at) for row, length in enumerate(lengths) for at in range(length - 1)]
    assert [tuple(place) for place in batch.predicts.nonzero().tolist()] == places
    assert batch.input_ids.shape == (len(lengths), max(lengths))
    assert batch.attention_mask.sum(1).tolist() == lengths
    assert (batch.input_ids[batch.attention_mask == 0] == 7).all()
    assert len(batch.labels) == len(batch.candidates.labels) == len(batch.candidates.ids) == len(places)
    for n, (row, at) in enumerate(places):
        sample = samples[row]
        assert batch.labels[n] == batch.candidates.labels[n] == sample.input_ids[at + 1]
        assert batch.input_ids[row, at] == sample.input_ids[at]
        np.testing.assert_array_equal(batch.candidates.ids[n], sample.ids[:, at])
        np.testing.assert_array_equal(batch.candidates.probs[n], sample.probs[:, at])
        np.testing.assert_array_equal(batch.candidates.aligned[n], sample.status[:, at] > 0)
        assert batch.candidates.chunk_of[n] == row
    np.testing.assert_array_equal(batch.candidates.nll_per_byte, np.stack([s.nll_per_byte for s in samples]))


def test_an_expert_scores_the_next_token() -> None:
    """Off by one anywhere on the road would give the expert no mass on the labels."""
    batch = collate(samples_of([8, 5, 11]), 0)
    assert batch.candidates is not None
    hit = (batch.candidates.ids == batch.labels[:, None, None]).any(-1)
    for n, row in enumerate(batch.candidates.chunk_of.tolist()):
        expert = row % 2
        assert hit[n, expert] == batch.candidates.aligned[n, expert]


def test_a_position_whose_entries_were_all_dropped_is_not_aligned() -> None:
    sample = samples_of([4])[0]
    sample.status[:] = 1
    sample.probs[0, 1], sample.ids[0, 1] = 0, -1
    batch = collate([sample], 0)
    assert batch.candidates is not None
    assert batch.candidates.aligned[:, 0].tolist() == [bool(sample.probs[0, at].any()) for at in range(3)]
    assert not batch.candidates.aligned[1, 0]


def test_padding_never_enters_the_losses() -> None:
    """What stands at padded places and at the last position changes neither loss nor gradient."""
    samples = samples_of([3, 9])
    batch = collate(samples, 0)
    assert batch.candidates is not None
    weight = torch.randn(300, 4)
    hidden = torch.randn(*batch.input_ids.shape, 4, requires_grad=True)
    head = run_head(lambda h: h @ weight.T, hidden[batch.predicts], batch.labels, batch.candidates.ids, 4)
    (head.label_nll.sum() + head.support_logq.sum()).backward()
    touched = hidden.grad.abs().sum(-1) > 0  # type: ignore[union-attr]
    assert torch.equal(touched, batch.predicts)


def test_moving_a_batch_keeps_its_fields() -> None:
    batch = collate(samples_of([3, 9]), 0)
    moved = batch.to(torch.device("cpu"))
    assert moved.candidates is not None
    assert batch.candidates is not None
    for left, right in zip(moved.candidates, batch.candidates, strict=True):
        assert torch.equal(left, right)
    assert moved.keys == batch.keys
