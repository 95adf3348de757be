"""The storage of top-k distributions against the plain Arrow way and Parquet's defaults: size, speed, exactness.

Real distributions: every model of the demo over the demo's corpus. One thread, files in memory's page cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fusionx.benchmarks.measuring.figure import Figure, interleaved_seconds
from fusionx.contract.errors import DataError
from fusionx.contract.shards.codec import (
    Distributions,
    add_distributions,
    add_token_nll,
    add_tokens,
    divergence,
    read_distributions,
)
from fusionx.contract.shards.parts import Provenance, list_column, read_part, write_part
from fusionx.contract.shards.schema import DICTIONARY_KEY, text_hash
from fusionx.contract.tokens.encoder import load_encoder

RANKS = (10, 32, 64)
MASS = 0.98
MANTISSA_BITS = 5
BLOCK = 256
STRIDE = 6
"""Every sixth chunk of the corpus: about 30,000 tokens of each source, of every domain."""
_AGAINST = "plain Arrow lists"
_COLUMNS = ("top_ids", "top_logprobs", "ids", "logprobs", "counts", "tail")


@dataclass(frozen=True)
class Source:
    """One model's statistics of N positions in rows of chunks, as precompute has them before it writes.

    ids: int32 [N, k]. logprobs: float32 [N, k]. tail, token_nll: float32 [N]. input_ids, ends: one array per row.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    tail: np.ndarray
    token_nll: np.ndarray
    input_ids: list[np.ndarray]
    ends: list[np.ndarray]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.input_ids]

    def first(self, k: int) -> Source:
        """Its k best entries; the rest joins the tail."""
        rest = np.exp(self.logprobs[:, k:], dtype=np.float64).sum(axis=1)
        tail = (self.tail + rest).astype(np.float32)
        return replace(self, ids=self.ids[:, :k].copy(), logprobs=self.logprobs[:, :k].copy(), tail=tail)


def figures(data: str = "data/demo", ranks: Sequence[int] = RANKS) -> Iterator[Figure]:
    """All figures of every k in `ranks`, over all sources together.

    Raises:
        DataError: the demo's models or corpus are not there.
    """
    models = sorted(path.parent for path in Path(data, "models").glob("*/config.json"))
    if not models or not Path(data, "corpus").is_dir():
        raise DataError("The demo's models are missing.", file=f"{data}/models", remedy="run `make demo-inputs`")
    with _one_thread():
        sources = [source_of(model, Path(data, "corpus"), max(ranks)) for model in models]
        for k in ranks:
            yield from _figures_at(k, [source.first(k) for source in sources])


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    arrow, torch_threads = pa.cpu_count(), torch.get_num_threads()
    pa.set_cpu_count(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        pa.set_cpu_count(arrow)
        torch.set_num_threads(torch_threads)


def source_of(model: Path, corpus: Path, k: int) -> Source:
    """Runs the model over the corpus, cut into chunks of at most `BLOCK` tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    from fusionx.precompute.logits.top_k import TopK, top_k_statistics

    encoder = load_encoder(str(model))
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    texts = [text for part in sorted(corpus.glob("*.parquet")) for text in pq.read_table(part)["text"].to_pylist()]
    pieces = [text[start : start + 2 * BLOCK] for text in texts for start in range(0, len(text), 2 * BLOCK)]
    encodings = [encoding for encoding in encoder.encode(pieces[::STRIDE]) if len(encoding.ids)]
    input_ids = [encoding.ids[:BLOCK] for encoding in encodings]
    statistics = []
    with torch.inference_mode():
        for row in input_ids:
            ids = torch.from_numpy(row.astype(np.int64))
            labels = torch.cat([ids[1:], ids.new_full((1,), -1)])
            logits = network(input_ids=ids[None]).logits[0]
            statistics.append(top_k_statistics(logits, labels, k, encoder.vocab_size))
    whole = TopK(*(torch.cat(parts) for parts in zip(*statistics, strict=True)))
    return Source(
        whole.ids.numpy(),
        whole.logprobs.numpy(),
        whole.tail.numpy(),
        whole.label_nll.numpy(),
        input_ids,
        [encoding.ends[:BLOCK] for encoding in encodings],
    )


@dataclass(frozen=True)
class Way:
    """One way to store a source: write to a path, read back ids int32 [E] and log-probabilities float16 [E]."""

    write: Callable[[Source, str], object]
    read: Callable[[str], tuple[np.ndarray, np.ndarray]]


def _ways() -> dict[str, Way]:
    """By the prefix of their metrics; ours, lossless, has none."""
    return {
        "arrow_": Way(_write_arrow, _read_lists),
        "parquet_": Way(_write_flat, _read_lists),
        "": Way(_write_part, _read_part),
        "mass_": Way(partial(_write_part, mass=MASS), _read_part),
        "lossy_": Way(partial(_write_part, mantissa_bits=MANTISSA_BITS), _read_part),
    }


def _figures_at(k: int, sources: list[Source]) -> Iterator[Figure]:
    ways, n, case = _ways(), 3, f"k{k}"
    tokens = sum(sum(source.lengths) for source in sources)
    with TemporaryDirectory() as folder:
        paths = {name: [f"{folder}/{name}-{i}.parquet" for i in range(len(sources))] for name in ways}

        def write(name: str) -> None:
            for source, path in zip(sources, paths[name], strict=True):
                ways[name].write(source, path)

        def read(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
            return [ways[name].read(path) for path in paths[name]]

        seconds = {
            "write": interleaved_seconds({name: partial(write, name) for name in ways}, n),
            "read": interleaved_seconds({name: partial(read, name) for name in ways}, n),
        }
        sizes = {name: np.sum([_bytes(path) for path in paths[name]], axis=0) / tokens for name in ways}
        _require_lossless(read("arrow_"), read(""))

    def figure(name: str, metric: str, value: float, unit: str, reference: float | None = None) -> Figure:
        made = Figure("codec", case, f"{name}{metric}", float(value), unit, n=n)
        if reference is None or name == "arrow_":
            return made
        return replace(made, against=_AGAINST, ratio=float(value / reference))

    for name in ways:
        whole, distributions = sizes[name]
        yield figure(name, "bytes_per_token", whole, "B", sizes["arrow_"][0])
        yield figure(name, "distributions_bytes_per_token", distributions, "B", sizes["arrow_"][1])
        for metric in ("write", "read"):
            rates = {other: tokens / seconds[metric][other] for other in ways}
            yield figure(name, f"{metric}_tokens_per_s", rates[name], "tokens/s", rates["arrow_"])
    yield figure("", "kl", 0.0, "nats")  # every bit came back
    yield figure("mass_", "entries_per_token", sum(len(_stored(s, MASS).ids) for s in sources) / tokens, "entries")
    exact = [_stored(source) for source in sources]
    kl = sum(divergence(one, one.rounded(MANTISSA_BITS)).sum() for one in exact) / tokens
    yield figure("lossy_", "kl", float(kl), "nats")


def _stored(source: Source, mass: float | None = None) -> Distributions:
    return Distributions.from_top_k(source.ids, source.logprobs, source.tail, mass)


def _write_part(source: Source, path: str, mass: float | None = None, mantissa_bits: int = 10) -> None:
    distributions = _stored(source, mass).rounded(mantissa_bits)
    table = add_tokens(_keys(len(source.lengths)), source.input_ids, source.ends)
    table = add_distributions(table, distributions, source.lengths)
    table = add_token_nll(table, source.token_nll)
    write_part(path, table, Provenance("logits", "train", {}, {}), len(source.tail))


def _read_part(path: str) -> tuple[np.ndarray, np.ndarray]:
    distributions = read_distributions(read_part(path, "logits")[0])
    return distributions.ids, distributions.logprobs


def _write_arrow(source: Source, path: str) -> None:
    offsets = _offsets(source)
    inner = pa.array(np.arange(0, source.ids.size + 1, source.ids.shape[1], dtype=np.int32))
    columns = {
        name: pa.ListArray.from_arrays(offsets, pa.ListArray.from_arrays(inner, pa.array(values.reshape(-1))))
        for name, values in _values(source, np.int64).items()
    }
    _write_default(source, path, columns, pa.int64())


def _write_flat(source: Source, path: str) -> None:
    offsets = pa.array(_offsets(source).to_numpy() * source.ids.shape[1])
    columns = {
        name: pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))
        for name, values in _values(source, np.int32).items()
    }
    _write_default(source, path, columns, pa.int32())


def _values(source: Source, integer: npt.DTypeLike) -> dict[str, np.ndarray]:
    return {"top_ids": source.ids.astype(integer), "top_logprobs": source.logprobs.astype(np.float16)}


def _write_default(source: Source, path: str, columns: dict[str, pa.Array], integer: pa.DataType) -> None:
    table = _keys(len(source.lengths))
    others = {
        "input_ids": list_column(source.input_ids, integer),
        "ends": list_column(source.ends, integer),
        **columns,
        "token_nll": pa.ListArray.from_arrays(_offsets(source), pa.array(source.token_nll)),
    }
    for name, column in others.items():
        table = table.append_column(name, column)
    pq.write_table(table, path)


def _read_lists(path: str) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(path)
    values = []
    for name in ("top_ids", "top_logprobs"):
        array = table.column(name).combine_chunks()
        while pa.types.is_list(array.type):
            array = array.flatten()
        values.append(array.to_numpy(zero_copy_only=False))
    return values[0].astype(np.int32), values[1]


def _keys(rows: int) -> pa.Table:
    return pa.table(
        {
            "doc_id": pa.array(range(rows), pa.int64()),
            "chunk": pa.array([0] * rows, pa.int32()),
            "text_hash": pa.array([text_hash(str(row)) for row in range(rows)], pa.string()),
        }
    )


def _offsets(source: Source) -> pa.Array:
    return pa.array(np.append(0, np.cumsum(source.lengths)).astype(np.int32))


def _bytes(path: str) -> tuple[int, int]:
    """Of the whole file, and of the distributions with their dictionary alone."""
    metadata = pq.ParquetFile(path).metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    stored = sum(one.total_compressed_size for one in columns if one.path_in_schema.split(".")[0] in _COLUMNS)
    return Path(path).stat().st_size, stored + len((metadata.metadata or {}).get(DICTIONARY_KEY, b""))


def _require_lossless(
    expected: list[tuple[np.ndarray, np.ndarray]], found: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    for (ids, logprobs), (own_ids, own_logprobs) in zip(expected, found, strict=True):
        same = np.array_equal(ids, own_ids) and np.array_equal(logprobs.view(np.uint16), own_logprobs.view(np.uint16))
        assert same, "the codec changed a value"
