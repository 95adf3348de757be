"""The codec against slow, obvious oracles: one value at a time, Python integers, float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from part_builder import random_distributions, table_of

import fusionx.contract.shards.parts as shard
from fusionx.contract.errors import DataError
from fusionx.contract.shards.codec import (
    Distributions,
    add_distributions,
    add_token_nll,
    add_tokens,
    divergence,
    probabilities,
    read_distributions,
    read_token_nll,
    read_tokens,
)
from fusionx.contract.shards.parts import Provenance, Ragged, inspect_part, read_part, write_part
from fusionx.contract.shards.schema import DICTIONARY_KEY, SCHEMA_VERSION


def keys(rows: int) -> pa.Table:
    return pa.table(
        {
            "doc_id": pa.array(range(rows), pa.int64()),
            "chunk": pa.array([0] * rows, pa.int32()),
            "text_hash": pa.array(["h"] * rows, pa.string()),
        }
    )


def through_a_part(folder: Path, distributions: Distributions, lengths: list[int]) -> pa.Table:
    """Written and read as an aligned part."""
    rows = len(lengths)
    table = add_distributions(keys(rows), distributions, lengths)
    table = table.append_column("status", pa.array([[1] * length for length in lengths], pa.list_(pa.uint8())))
    table = table.append_column("nll", pa.array([0.0] * rows, pa.float64()))
    table = table.append_column("nll_bytes", pa.array([0] * rows, pa.int32()))
    path = str(folder / "part-00000.parquet")
    entry = write_part(path, table, Provenance("aligned", "train", {}, {}), sum(lengths))
    return read_part(path, "aligned", sha256=entry.sha256)[0]


def bits(distributions: Distributions) -> dict[str, Any]:
    """Everything as integers, so that NaN and the two zeros compare by their patterns."""
    return {
        "ids": distributions.ids.tolist(),
        "logprobs": distributions.logprobs.view(np.uint16).tolist(),
        "counts": distributions.counts.tolist(),
        "tail": distributions.tail.view(np.uint16).tolist(),
    }


def decoded_slowly(table: pa.Table) -> dict[str, Any]:
    """What the columns say, value by value, with Python integers. The tail's code is left out."""
    import base64
    import zlib

    steps = zlib.decompress(base64.b85decode(table.schema.metadata[DICTIONARY_KEY]))
    size, dictionary = len(steps) // 4, []
    for place in range(size):
        step = int.from_bytes(bytes(steps[place + size * byte] for byte in range(4)), "little", signed=True)
        dictionary.append((dictionary[-1] if dictionary else 0) + step)
    ids, logprobs, counts = [], [], []
    for row in table.select(["ids", "logprobs", "counts"]).to_pylist():
        ids += [dictionary[int.from_bytes(code, "little")] for code in row["ids"]]
        counts += [int.from_bytes(count, "little") for count in row["counts"]]
        for packed, count in zip(row["logprobs"], row["counts"], strict=True):
            value = 0
            for rank in range(int.from_bytes(count, "little")):
                value = (value + int.from_bytes(packed[2 * rank : 2 * rank + 2], "little")) % 65536
                logprobs.append(value)
    return {"ids": ids, "logprobs": logprobs, "counts": counts}


VOCABULARIES = [2, 200, 2**16 - 1, 2**16, 2**16 + 1, 2**24 - 1, 2**24 + 1]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_every_bit_comes_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 4), max_size=5))
    k = data.draw(st.sampled_from([1, 2, 3, 10, 64, 128, 1024]))
    vocab = data.draw(st.sampled_from(VOCABULARIES))
    seed = data.draw(st.integers(0, 2**32))
    ragged, patterns = data.draw(st.booleans()), data.draw(st.sampled_from(["any", "real", "ties"]))
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    counts = rng.integers(0, k + 1, n) if ragged else np.full(n, k)
    entries = int(counts.sum())
    logprobs = rng.integers(0, 65536, entries).astype(np.uint16).view(np.float16)
    if patterns == "real":
        logprobs = -np.sort(rng.exponential(5, entries)).astype(np.float16)
    elif patterns == "ties":
        logprobs = rng.choice(np.array([0.0, -0.0, -np.inf, -1.5, 1e-7, np.nan], np.float16), entries)
    tail = rng.integers(0, 65536, n).astype(np.uint16).view(np.float16)
    ids = np.concatenate([rng.integers(0, vocab, max(0, entries - 1)), np.full(min(1, entries), vocab - 1)])
    written = Distributions(ids.astype(np.int32), logprobs, counts.astype(np.uint16), tail)
    table = through_a_part(tmp_path_factory.mktemp("part"), written, lengths)
    assert bits(read_distributions(table)) == bits(written)
    slowly = decoded_slowly(table)
    assert slowly == {name: bits(written)[name] for name in slowly}


def test_all_fp16_patterns_in_one_part(tmp_path: Path) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for order in (every, every[::-1], np.random.default_rng(0).permutation(every)):
        logprobs = np.ascontiguousarray(order).view(np.float16)
        written = Distributions(
            np.zeros(1 << 16, np.int32), logprobs, np.full(512, 128, np.uint16), logprobs[::128].copy()
        )
        assert bits(read_distributions(through_a_part(tmp_path, written, [500, 0, 12]))) == bits(written)


def test_rows_may_be_selected_and_reordered(tmp_path: Path) -> None:
    lengths = [3, 0, 5, 1]
    written = random_distributions(np.random.default_rng(0), 9)
    table = through_a_part(tmp_path, written, lengths)
    assert bits(read_distributions(table.take([3, 1, 0]))) == bits(
        Distributions.concatenate([written[8:9], written[0:3]])
    )
    assert bits(read_distributions(table.slice(2, 1))) == bits(written[3:8])
    assert bits(read_distributions(table.slice(0, 0))) == bits(written[0:0])


def test_more_ids_than_two_bytes_name(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).permutation(70_000).astype(np.int32)
    written = Distributions(
        ids, np.zeros(70_000, np.float16), np.full(35_000, 2, np.uint16), np.zeros(35_000, np.float16)
    )
    assert bits(read_distributions(through_a_part(tmp_path, written, [35_000]))) == bits(written)


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), max_size=6),
    vocab=st.sampled_from(VOCABULARIES),
    longest=st.sampled_from([1, 9, 300, 70_000]),
    seed=st.integers(0, 2**32),
)
def test_tokens_come_back(lengths: list[int], vocab: int, longest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    input_ids = [rng.integers(0, vocab, length).astype(np.int32) for length in lengths]
    ends = [np.cumsum(rng.integers(0, longest + 1, length)).astype(np.int32) for length in lengths]
    table = add_tokens(keys(len(lengths)), input_ids, ends)
    for found, written in zip(read_tokens(table), (input_ids, ends), strict=True):
        assert found.values.dtype == np.int32
        assert [found.row(row).tolist() for row in range(len(lengths))] == [row.tolist() for row in written]
    for row, packed in enumerate(table.column("ends").to_pylist()):
        steps = [int.from_bytes(step, "little") for step in packed]
        assert np.cumsum(steps).tolist() == ends[row].tolist()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_next_tokens_nll_is_taken_from_the_entries_or_stored(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 5), max_size=5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, k, vocab = sum(lengths), data.draw(st.integers(1, 4)), 6
    input_ids = [rng.integers(0, vocab, length).astype(np.int32) for length in lengths]
    full = random_distributions(rng, n, vocab, vocab)
    ids, logprobs = full.padded(vocab)
    counts = rng.integers(0, k + 1, n)
    kept = Distributions.from_padded(ids[:, :k], logprobs[:, :k], counts, np.zeros(n))
    starts = np.append(0, np.cumsum(lengths))
    expected = np.zeros(n)
    for row, tokens in enumerate(input_ids):
        for at in range(len(tokens) - 1):
            place = starts[row] + at
            expected[place] = -float(logprobs[place][ids[place].tolist().index(tokens[at + 1])])
    table = add_tokens(keys(len(lengths)), input_ids, [np.arange(length) for length in lengths])
    table = add_token_nll(add_distributions(table, kept, lengths), expected.astype(np.float32))
    found = read_token_nll(table, read_distributions(table))
    assert found.tolist() == expected.tolist()
    missed = sum(Ragged.from_column(table.column("missed_nll")).lengths())
    labels = [
        (starts[row] + at, tokens[at + 1]) for row, tokens in enumerate(input_ids) for at in range(len(tokens) - 1)
    ]
    assert missed == sum(label not in ids[place, : counts[place]] for place, label in labels)


@settings(max_examples=100, deadline=None)
@given(mass=st.sampled_from([0.0, 0.3, 0.9, 0.98, 1.0]), k=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_mass_keeps_the_fewest_entries_that_reach_it(mass: float, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probs = np.sort(rng.dirichlet(np.full(12, 0.3), 7))[:, ::-1][:, :k]
    logprobs = np.log(np.maximum(probs, 1e-30)).astype(np.float32)
    tail = (1 - probs.sum(axis=1)).astype(np.float32)
    found = Distributions.from_top_k(np.tile(np.arange(k), (7, 1)), logprobs, tail, mass)
    for row in range(7):
        exact = [math.exp(float(value)) for value in logprobs[row]]
        kept = 1
        while kept < k and sum(exact[:kept]) < mass:
            kept += 1
        assert found.counts[row] == kept
        entries = slice(found.starts[row], found.starts[row + 1])
        assert found.ids[entries].tolist() == list(range(kept))
        assert found.logprobs[entries].tolist() == logprobs[row, :kept].astype(np.float16).tolist()
        assert float(found.tail[row]) == pytest.approx(float(tail[row]) + sum(exact[kept:]), rel=1e-3, abs=1e-7)


def test_the_tail_is_exact_where_rounded_entries_are_not() -> None:
    """Eight entries of a peaked distribution: their fp16 sum misses the true tail by many times its size."""
    probs = np.full((1, 8), (1 - 1e-5) / 8)
    stored = Distributions.from_top_k(
        np.arange(8)[None], np.log(probs).astype(np.float32), np.array([1e-5], np.float32)
    )
    rounded_sum = np.exp(stored.logprobs.astype(np.float64)).sum()
    assert abs((1 - rounded_sum) - 1e-5) > 1e-4
    assert float(stored.tail[0]) == pytest.approx(1e-5, rel=1e-2)
    found = probabilities(stored.padded()[1], stored.tail, np.float64)
    assert found.sum() + float(stored.tail[0]) == pytest.approx(1, abs=1e-12)


def test_padding_and_nothing() -> None:
    one = Distributions.from_padded(
        np.array([[5, 4], [3, 9], [7, 7]]),
        np.log([[0.5, 0.2], [0.9, 0.05], [0.1, 0.1]]),
        np.array([2, 1, 0]),
        np.ones(3),
    )
    ids, logprobs = one.padded(3)
    assert ids.tolist() == [[5, 4, -1], [3, -1, -1], [-1, -1, -1]]
    assert np.isneginf(logprobs).tolist() == [[False, False, True], [False, True, True], [True, True, True]]
    assert probabilities(logprobs, one.tail)[2].tolist() == [0, 0, 0]
    whole = random_distributions(np.random.default_rng(0), 4)
    assert np.shares_memory(whole.padded()[0], whole.ids)
    assert bits(Distributions.concatenate([])) == {"ids": [], "logprobs": [], "counts": [], "tail": []}


def nearest(value: float, mantissa_bits: int) -> float:
    """`value` with so many mantissa bits, ties to even, by float64 arithmetic; subnormals on fp16's own grid."""
    if value == 0 or not math.isfinite(value):
        return value
    exponent = max(math.frexp(value)[1] - 1, -14)
    grid = 2.0 ** (exponent - mantissa_bits)
    return min(max(round(value / grid) * grid, -65536 + grid), 65536 - grid)  # the largest that is finite


@pytest.mark.parametrize("mantissa_bits", range(1, 11))
def test_rounding_is_to_the_nearest_and_keeps_the_order(mantissa_bits: int) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[~np.isnan(every)]
    one = Distributions(np.zeros(len(every), np.int32), every, np.ones(len(every), np.uint16), np.zeros(len(every)))
    found = one.rounded(mantissa_bits).logprobs
    assert found.astype(np.float64).tolist() == [nearest(float(value), mantissa_bits) for value in every]
    assert (np.signbit(found) == np.signbit(every)).all()
    ordered = np.argsort(every, kind="stable")
    assert (np.diff(found[ordered][np.isfinite(found[ordered])]) >= 0).all()


@settings(max_examples=50, deadline=None)
@given(
    mantissa_bits=st.integers(0, 10), k=st.integers(1, 9), seed=st.integers(0, 2**32), mass=st.sampled_from([None, 0.5])
)
def test_divergence_equals_brute_force(mantissa_bits: int, k: int, seed: int, mass: float | None) -> None:
    exact = random_distributions(np.random.default_rng(seed), 6, k, 20)
    if mass is not None:
        ids, logprobs = exact.padded()
        exact = Distributions.from_top_k(ids, logprobs.astype(np.float32), exact.tail.astype(np.float32), mass)
    stored = exact.rounded(mantissa_bits)
    found = divergence(exact, stored)
    for position in range(6):
        symbols = []
        for one in (exact, stored):
            entries = slice(one.starts[position], one.starts[position + 1])
            probs = [math.exp(float(value)) for value in one.logprobs[entries]]
            scale = (1 - float(one.tail[position])) / sum(probs)
            symbols.append([*(scale * p for p in probs), float(one.tail[position])])
        brute = sum(p * math.log(p / q) for p, q in zip(*symbols, strict=True) if p > 0)
        assert found[position] == pytest.approx(brute, abs=1e-12)
    assert (found >= -1e-12).all()
    if mantissa_bits == 10:
        assert (found == 0).all()


def test_a_part_of_the_first_version_is_refused_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 1 had other columns and no widths in its footer."""
    path = str(tmp_path / "part-00000.parquet")
    with monkeypatch.context() as patch:
        first = pa.schema([pa.field("doc_id", pa.int64()), pa.field("top_ids", pa.list_(pa.int32()))])
        patch.setattr(shard, "schema_of", lambda kind, widths: first)
        table = pa.table({"doc_id": [1], "top_ids": [[1, 2]]}, schema=first)
        write_part(path, table, Provenance("logits", "train", {"k": 2}, {}, schema_version=1), 1)
    for read in (lambda: read_part(path, "logits"), lambda: inspect_part(path)):
        with pytest.raises(DataError, match="another schema version") as caught:
            read()
        assert (caught.value.details["found"], caught.value.details["expected"]) == ("1", str(SCHEMA_VERSION))


def test_a_changed_dictionary_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    write_part(str(path), table_of("logits"), Provenance("logits", "train", {}, {}), 1)
    data = path.read_bytes()
    dictionary = pq.ParquetFile(path).metadata.metadata[DICTIONARY_KEY]
    for offset in range(len(dictionary)):
        place = data.index(dictionary) + offset
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DataError, match="damaged"):
            read_part(str(path), "logits")


def test_equal_tables_give_equal_bytes_however_they_were_gathered(tmp_path: Path) -> None:
    whole = random_distributions(np.random.default_rng(0), 30)
    pieces = Distributions.concatenate([whole[0:7], whole[7:7], whole[7:30]])
    entries = []
    for name, one in (("a", whole), ("b", pieces)):
        (tmp_path / name).mkdir()
        through_a_part(tmp_path / name, one, [10, 20])
        entries.append((tmp_path / name / "part-00000.parquet").read_bytes())
    assert entries[0] == entries[1]
