"""From shards to batches: samples, what is refused, and the steps of every device."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

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
from trainings import assert_same_batch

from fusionx.contract.errors import ConfigError, DataError, IncompleteError
from fusionx.contract.files import storage
from fusionx.train.data.block_order import WINDOW_PARTS
from fusionx.train.data.collate import Batch, collate, collate_blocks
from fusionx.train.data.loader import StepBatches, loader
from fusionx.train.data.shard_stream import Sample, ShardSet
from fusionx.train.distributed.stop_signals import handled_by

CANDIDATES = ["target", "left", "right"]
ROWS = [3, 1, 4, 0, 2, 5, 1, 2, 3, 4, 2]  # more parts than a shuffling window, one of them empty


@pytest.fixture(scope="module")
def parts() -> Parts:
    return random_parts(ROWS, CANDIDATES)


@pytest.fixture(scope="module")
def shards(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet(*write_set(tmp_path_factory.mktemp("set"), parts, CANDIDATES), "train")


def assert_same_sample(left: Sample, right: Sample) -> None:
    assert (left.key, left.domain) == (right.key, right.domain)
    for name in ("input_ids", "ends", "ids", "probs", "label_probs", "status", "nll_per_byte"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def first_two(said: Said) -> Said:
    return replace(said, ids=said.ids[:, :2], probs=said.probs[:, :2])


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
                np.testing.assert_array_equal(sample.ids[:, j], said.ids)
                np.testing.assert_allclose(sample.probs[:, j], said.probs, rtol=4e-3)  # fp16 log-probabilities
                aligned = said.status > 0
                np.testing.assert_allclose(  # nearer than the rounded entries alone would be
                    sample.probs[aligned, j].sum(axis=1), said.probs[aligned].sum(axis=1), rtol=0, atol=3e-4
                )
                np.testing.assert_array_equal(sample.status[:, j], chunk.said[name].status)
                assert sample.nll_per_byte[j] == np.float32(chunk.said[name].nll / 20)
    assert sorted(seen) == sorted((r.doc_id, r.chunk) for split, rows in parts if split == "train" for r in rows)


def test_candidates_of_different_k_are_filled_up_to_the_largest(parts: Parts, tmp_path: Path) -> None:
    narrow = [
        (split, [replace(row, said={**row.said, "left": first_two(row.said["left"])}) for row in rows])
        for split, rows in parts
    ]
    wide = ShardSet(*write_set(tmp_path / "wide", parts, CANDIDATES), "train").sample(0, 0)
    sample = ShardSet(*write_set(tmp_path / "narrow", narrow, CANDIDATES), "train").sample(0, 0)
    left = CANDIDATES.index("left")
    assert sample.ids.shape == wide.ids.shape
    np.testing.assert_array_equal(sample.ids[:, left, :2], wide.ids[:, left, :2])
    assert (sample.ids[:, left, 2:] == -1).all()
    assert not sample.probs[:, left, 2:].any()
    np.testing.assert_array_equal(np.delete(sample.probs, left, 1), np.delete(wide.probs, left, 1))


def test_fewer_entries_are_the_most_probable_and_the_rest_is_tail(parts: Parts, tmp_path: Path) -> None:
    """The same as if no more had been stored: nothing is scaled up."""
    tokens, aligned = write_set(tmp_path, parts, CANDIDATES)
    whole, cut = ShardSet(tokens, aligned, "train").sample(0, 0), ShardSet(tokens, aligned, "train", 2).sample(0, 0)
    np.testing.assert_array_equal(cut.ids, whole.ids[..., :2])
    np.testing.assert_array_equal(cut.probs, whole.probs[..., :2])
    assert_same_sample(ShardSet(tokens, aligned, "train", whole.ids.shape[-1]).sample(0, 0), whole)
    stored = [(split, [replace(row, said={name: first_two(said) for name, said in row.said.items()}) for row in rows])
              for split, rows in parts]  # fmt: skip
    narrow = ShardSet(*write_set(tmp_path / "narrow", stored, CANDIDATES), "train").sample(0, 0)
    np.testing.assert_array_equal(cut.ids, narrow.ids)
    np.testing.assert_allclose(cut.probs, narrow.probs, rtol=2e-3)  # each undoes its own rounding


def test_refuses_more_entries_than_are_stored(parts: Parts, tmp_path: Path) -> None:
    tokens, aligned = write_set(tmp_path, parts, CANDIDATES)
    with pytest.raises(ConfigError, match="at most"):
        ShardSet(tokens, aligned, "train", 99)
    assert ShardSet(tokens, {}, "train", 99).sample(0, 0).ids.shape[-1] == 0  # nothing to cut


def test_rows_are_joined_by_key_not_by_place(parts: Parts, tmp_path: Path) -> None:
    backwards = [(split, rows[::-1]) for split, rows in parts]
    tokens, aligned = write_set(tmp_path / "a", parts, CANDIDATES)
    aligned["left"] = write_aligned(tmp_path / "backwards", backwards, "left")
    ordered = ShardSet(*write_set(tmp_path / "b", parts, CANDIDATES), "train")
    for part, rows in enumerate(ordered.rows):
        for row in range(rows):
            assert_same_sample(ShardSet(tokens, aligned, "train").sample(part, row), ordered.sample(part, row))


def test_a_stream_without_candidates(parts: Parts, tmp_path: Path) -> None:
    shards = ShardSet(write_tokens(tmp_path, parts), {}, "train")
    sample = shards.sample(0, 0)
    assert sample.ids.shape == (len(sample.input_ids), 0, 0)
    assert collate([sample], 0).candidates is None


def test_an_nll_over_no_byte_is_unknown(tmp_path: Path) -> None:
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
    assert "text_hash" in caught.value.details["field"]


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


# Steps


def assert_same_batches(left: list[Batch], right: list[Batch]) -> None:
    for one, other in zip(left, right, strict=True):
        assert_same_batch(one, other)


def steps_of(shards: ShardSet, batch_size: int = 4, pack: int | None = None, **changed: Any) -> StepBatches:
    return StepBatches(shards, shards.order(3, pack), batch_size, 0, document_mask=pack is not None, **changed)


@pytest.mark.parametrize("pack", [None, 24])
def test_a_step_takes_the_next_blocks_of_the_order(shards: ShardSet, pack: int | None) -> None:
    order, batches = shards.order(3, pack), steps_of(shards, 4, pack)
    for step in range(2 * order.blocks_per_epoch // 4 + 1):
        blocks = [[shards.sample(*place) for place in order.block(index)] for index in range(step * 4, (step + 1) * 4)]
        assert_same_batches(batches[step], [collate_blocks(blocks, 0, pack is not None, sorted(shards.domains))])


@settings(max_examples=30, deadline=None)
@given(
    world=st.sampled_from([1, 2, 3, 6]),
    micro_batch=st.sampled_from([None, 1, 2, 5]),
    pack=st.sampled_from([None, 24]),
    step=st.integers(0, 20),
)
def test_all_worlds_and_micro_batches_take_the_same_chunks(
    shards: ShardSet, world: int, micro_batch: int | None, pack: int | None, step: int
) -> None:
    whole = steps_of(shards, 6, pack)
    keys, rows = [], 0
    for rank in range(world):
        device = steps_of(shards, 6, pack, micro_batch=micro_batch, rank=rank, world=world)
        for batch in device[step]:
            assert len(batch.input_ids) <= (micro_batch or 6)
            keys += batch.keys
            rows += len(batch.input_ids)
    assert keys == whole[step][0].keys
    assert rows == 6


@pytest.mark.parametrize("pack", [None, 24])
def test_every_epoch_sees_every_chunk_once(shards: ShardSet, pack: int | None) -> None:
    batches, blocks = steps_of(shards, 1, pack), shards.order(3, pack).blocks_per_epoch
    assert blocks == sum(ROWS) if pack is None else blocks < sum(ROWS)
    for epoch in range(3):
        keys = [key for step in range(epoch * blocks, (epoch + 1) * blocks) for key in batches[step][0].keys]
        assert len(set(keys)) == len(keys) == sum(ROWS)


def test_refuses_a_batch_that_does_not_divide(shards: ShardSet) -> None:
    with pytest.raises(ConfigError, match="4 blocks for 3 devices") as caught:
        steps_of(shards, 4, world=3)
    assert caught.value.details["field"] == "optimizer.batch_size"


def test_refuses_a_chunk_longer_than_a_block(shards: ShardSet) -> None:
    with pytest.raises(ConfigError, match="at least 11") as caught:
        shards.order(0, pack=10)
    assert caught.value.details["field"] == "optimizer.pack"
    assert "part-" in caught.value.details["file"]


def test_packing_reads_the_tokens_only(parts: Parts, tmp_path: Path) -> None:
    tokens, aligned = write_set(tmp_path, parts, ["left"])
    for path in (tmp_path / "left").glob("*.parquet"):
        path.unlink()
    order = ShardSet(tokens, aligned, "train").order(0, pack=24)
    lengths = [[len(row.input_ids) for row in rows] for split, rows in parts if split == "train"]
    for index in range(order.blocks_per_epoch):
        assert sum(lengths[part][row] for part, row in order.block(index)) <= 24


def test_parts_are_read_ahead_of_need_and_once_per_epoch(tmp_path: Path) -> None:
    count, rows = 3 * WINDOW_PARTS, 2
    shards = ShardSet(*write_set(tmp_path, random_parts([rows] * count, ["left"]), ["left"]), "train")
    batches, order, cache = steps_of(shards, 1), shards.order(3), shards._part.cache_info  # type: ignore[attr-defined]
    for step in range(3 * order.blocks_per_epoch):
        before = cache().misses
        shards.sample(*order.block(step)[0])
        if step >= rows * WINDOW_PARTS:  # nothing could announce the parts of the first window
            assert cache().misses == before
        batches[step]
        assert cache().currsize <= 2 * WINDOW_PARTS
    assert cache().misses <= 3 * count + WINDOW_PARTS  # windows of two epochs may share a part


# The loader


def assert_loads(batches: StepBatches, start: int, stop: int, workers: int) -> None:
    steps = range(start, stop)
    for step, found in zip(steps, loader(batches, start, stop, workers), strict=True):
        assert_same_batches(found, batches[step])


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 40), steps=st.integers(0, 9))
def test_loads_from_any_step_on(shards: ShardSet, start: int, steps: int) -> None:
    assert_loads(steps_of(shards, 4, 24, micro_batch=3), start, start + steps, workers=0)


@pytest.mark.parametrize(("workers", "start"), [(1, 0), (2, 5)])
def test_workers_make_the_same_batches(shards: ShardSet, workers: int, start: int) -> None:
    assert_loads(steps_of(shards, 4, 24, micro_batch=3), start, start + 11, workers)


def test_a_signal_that_comes_as_the_workers_start_is_heard(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    start, heard = forkserver.ensure_running, list[int]()

    def signalled() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        start()

    monkeypatch.setattr(forkserver, "ensure_running", signalled)
    with handled_by(lambda number, _: heard.append(number)):
        assert_loads(steps_of(shards), 0, 3, workers=1)
    assert heard == [signal.SIGTERM]


def test_loading_leaves_the_trainers_random_numbers_alone(shards: ShardSet) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(loader(steps_of(shards), 0, 2, workers=0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_with_its_details(parts: Parts, tmp_path: Path, workers: int) -> None:
    tokens, aligned = write_set(tmp_path, parts, ["left"])
    shards = ShardSet(tokens, aligned, "train")
    (tmp_path / "left" / "part-00004.parquet").unlink()
    with pytest.raises(DataError) as caught:
        list(loader(steps_of(shards), 0, sum(ROWS), workers))
    assert caught.value.details["file"] == f"{aligned['left']}/part-00004.parquet"
    assert "remedy" in caught.value.details


class Killed(StepBatches):
    def __getitem__(self, step: int) -> list[Batch]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_worker_is_an_error_that_says_so(shards: ShardSet) -> None:
    with pytest.raises(IncompleteError, match="worker") as caught:
        list(loader(Killed(shards, shards.order(0), 1, 0), 0, 3, workers=1))
    assert caught.value.details["field"] == "run.loader_workers"


class Broken(StepBatches):
    def __getitem__(self, step: int) -> list[Batch]:
        raise RuntimeError("our mistake")


def test_a_workers_own_mistake_keeps_its_traceback(shards: ShardSet) -> None:
    with pytest.raises(RuntimeError, match="our mistake"):
        list(loader(Broken(shards, shards.order(0), 1, 0), 0, 3, workers=1))


def test_parts_are_read_from_any_filesystem(parts: Parts, tmp_path: Path, shards: ShardSet) -> None:
    tokens, aligned = write_set(tmp_path, parts, CANDIDATES)
    for folder in (tokens, *aligned.values()):
        for path in Path(folder).iterdir():
            storage.write_bytes(f"memory://shards{path}", path.read_bytes())
    there = {name: f"memory://shards{folder}" for name, folder in aligned.items()}
    remote = ShardSet(f"memory://shards{tokens}", there, "train")
    for step in range(4):
        assert_same_batches(steps_of(remote, 4, 24)[step], steps_of(shards, 4, 24)[step])
